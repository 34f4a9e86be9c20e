"""One interface over vision-language models: a prompt in, embeddings and tapped layer features out.

The prompt is one user turn: the images of the present views in a fixed order, then the instruction, in the model's own
chat template, padded on the left. Views come first, so a causal model's visual features hold no language; to make a
prior blind to language with any model (PaliGemma attends both ways), prepare its prompts with `blind=True`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from apt_bench.core.errors import UserError
from apt_bench.models.config import VLMShape
from apt_bench.models.inputs import LANGUAGE, PAD, VISION, TensorRecord, VLFeatures
from apt_bench.models.lora import add_lora, merge_lora

VLMMode = Literal["frozen", "lora", "full"]
Views = Sequence[np.ndarray | None]  # uint8 (H, W, 3) per camera, None where a camera is missing


@dataclass(frozen=True)
class Prompt(TensorRecord):
    """Tokenised prompts. ids (B, L); token_type, view (B, L) and uv (B, L, 2) as in `VLFeatures`; `present` (B, L) bool
    = not padding; `word`, `query` (B, L) bool = tokens of the instruction itself, and learned queries; `pixels` what
    the vision tower eats, by the model's own argument names."""

    ids: Tensor
    present: Tensor
    token_type: Tensor
    view: Tensor
    uv: Tensor
    word: Tensor
    query: Tensor
    pixels: dict[str, Tensor]


@dataclass(frozen=True)
class Turn:
    """A turn's token ids: `before`, then `opening` + visual tokens + `closing` per view, then `lead`, the instruction
    `text`, and `after`."""

    text: list[int]
    before: Sequence[int] = ()
    opening: Sequence[int] = ()
    closing: Sequence[int] = ()
    lead: Sequence[int] = ()
    after: Sequence[int] = ()


@dataclass
class _Row:
    """One sample's prompt while it is being written."""

    ids: list[int] = field(default_factory=list)
    token_type: list[int] = field(default_factory=list)
    view: list[int] = field(default_factory=list)
    word: list[bool] = field(default_factory=list)
    query: list[bool] = field(default_factory=list)
    uv: Tensor = field(default_factory=lambda: torch.zeros(0, 2))
    images: list[np.ndarray] = field(default_factory=list)

    def say(self, ids: Sequence[int], word: bool = False, query: bool = False) -> None:
        self.add(ids, [LANGUAGE] * len(ids), -1, torch.zeros(len(ids), 2), word, query)

    def add(
        self,
        ids: Sequence[int],
        types: list[int],
        view: int,
        uv: Tensor,
        word: bool = False,
        query: bool = False,
    ) -> None:
        self.ids += ids
        self.token_type += types
        self.view += [view] * len(ids)
        self.word += [word] * len(ids)
        self.query += [query] * len(ids)
        self.uv = torch.cat([self.uv, uv])


def letterbox(
    image: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Scale to fit, keeping the aspect, with black bars. Returns the image and (left, top, right, bottom) of the true
    picture, in fractions of it. Downscaling averages areas; upscaling is bicubic."""
    h, w = image.shape[:2]
    scale = min(height / h, width / w)
    new_h, new_w = round(h * scale), round(w * scale)
    top, left = (height - new_h) // 2, (width - new_w) // 2
    box = (left / width, top / height, (left + new_w) / width, (top + new_h) / height)
    if (h, w) == (height, width):
        return image, box
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    out = np.zeros((height, width, 3), np.uint8)
    out[top : top + new_h, left : left + new_w] = np.asarray(
        Image.fromarray(image).resize((new_w, new_h), how)
    )
    return out, box


class VLM(nn.Module, ABC):
    """A vision-language model as the experts see it."""

    shape: VLMShape
    image_size: tuple[int, int]  # height, width that the vision tower gets
    grid: tuple[int, int]  # rows, columns of visual tokens per view
    image_id: int
    pad_id: int
    mode: VLMMode = "frozen"
    tied = True  # whether its words are read off with its input embeddings
    causal = True  # whether a token sees only what stands before it (and its own view)
    queries: nn.Parameter | None  # learned tokens beside the instruction, (K, width); see langforce.py

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("queries", None)

    @property
    @abstractmethod
    def decoder_layers(self) -> nn.ModuleList:
        """The language model's layers."""

    @property
    @abstractmethod
    def word_embedding(self) -> nn.Embedding:
        """The input embeddings of tokens."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The norm behind the last decoder layer."""

    @abstractmethod
    def turn(self, text: str) -> Turn:
        """The chat template around images and `text`."""

    @abstractmethod
    def pack(self, images: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """Images per sample, uint8 (*image_size, 3), as the vision tower's arguments."""

    @abstractmethod
    def read(self, prompt: Prompt, layers: tuple[int, ...], kv: bool) -> VLFeatures:
        """Run the model as far up as `layers` ask (all the way for `kv`)."""

    def prepare(
        self,
        views: Sequence[Views],
        instructions: Sequence[str],
        blind: bool = False,
        queries_first: bool = False,
    ) -> Prompt:
        """Tokenise a batch, on the CPU. `blind` leaves the instructions out, so that nothing downstream can know
        them. Queries, if the model has any, stand behind the instruction, or before it (`queries_first`)."""
        rows = [
            self._sample(v, "" if blind else text, queries_first)
            for v, text in zip(views, instructions, strict=True)
        ]
        L = max(len(row.ids) for row in rows)

        def left_pad(name: str, fill: int | bool) -> Tensor:
            values = [getattr(row, name) for row in rows]
            return torch.tensor([[fill] * (L - len(value)) + list(value) for value in values])

        return Prompt(
            ids=left_pad("ids", self.pad_id),
            present=torch.tensor([[j >= L - len(row.ids) for j in range(L)] for row in rows]),
            token_type=left_pad("token_type", PAD),
            view=left_pad("view", -1),
            uv=torch.stack([torch.cat([torch.zeros(L - len(row.uv), 2), row.uv]) for row in rows]),
            word=left_pad("word", False),
            query=left_pad("query", False),
            pixels=self.pack([row.images for row in rows]),
        )

    def _sample(self, views: Views, text: str, queries_first: bool) -> _Row:
        """One prompt, not yet padded."""
        rows, cols = self.grid
        v, u = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(cols) + 0.5) / cols, indexing="ij")
        centre, half = np.stack([u, v], -1).reshape(-1, 2), np.array([0.5 / cols, 0.5 / rows])
        turn, row = self.turn(text), _Row()
        row.say(turn.before)
        for index, image in enumerate(views):
            if image is None:
                continue
            picture, (left, top, right, bottom) = letterbox(_checked(image, index), *self.image_size)
            low, high = np.array([left, top]), np.array([right, bottom])
            seen = ((centre + half > low) & (centre - half < high)).all(-1)  # one true pixel suffices
            row.say(turn.opening)
            uv = torch.from_numpy((centre - low) / (high - low)).float()
            row.add([self.image_id] * len(centre), np.where(seen, VISION, PAD).tolist(), index, uv)
            row.say(turn.closing)
            row.images.append(picture)
        row.say(turn.lead)
        queries = [] if self.queries is None else [self.pad_id] * len(self.queries)
        row.say(queries if queries_first else [], query=True)
        row.say(turn.text, word=True)
        row.say([] if queries_first else queries, query=True)
        row.say(turn.after)
        return row

    def forward(self, prompt: Prompt, layers: tuple[int, ...], kv: bool = False) -> VLFeatures:
        """Features of `prompt` at the decoder layers `layers` (and all keys and values, if `kv`)."""
        with torch.no_grad() if self.mode == "frozen" else nullcontext():
            return self.read(prompt, layers, kv)

    def add_queries(self, count: int) -> None:
        """Give the model `count` queries: the mean word and noise of deviation 0.02, always the same."""
        words = self.word_embedding.weight.detach()
        generator = torch.Generator().manual_seed(42)
        noise = torch.randn(count, words.shape[1], generator=generator, device="cpu")
        self.queries = nn.Parameter(words.float().mean(0) + 0.02 * noise.to(words.device))
        self.set_mode(self.mode)

    def with_queries(self, x: Tensor, prompt: Prompt) -> Tensor:
        """Embeddings x (B, L, width) with the queries in their places."""
        if self.queries is None:
            return x
        index = (prompt.query.long().cumsum(1) - 1).clamp(min=0)
        return torch.where(prompt.query[..., None], self.queries.to(x.dtype)[index], x)

    def set_mode(self, mode: VLMMode) -> None:
        """frozen: nothing trains. lora: adapters in every linear of the decoder layers train. full: everything does."""
        if mode not in ("frozen", "lora", "full"):
            raise UserError(f"VLM mode '{mode}' is unknown; it must be frozen, lora or full.")
        merge_lora(self.decoder_layers)
        self.mode = mode
        self.requires_grad_(mode == "full")
        if mode == "lora":
            add_lora(self.decoder_layers)
            if self.queries is not None:
                self.queries.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> VLM:
        """As usual, but a frozen model stays in evaluation mode."""
        return super().train(mode and self.mode != "frozen")


def _checked(image: np.ndarray, index: int) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"Image of view {index} is {image.dtype} {tuple(image.shape)}; it must be uint8 (height, width, 3)."
        )
    return image
