"""The interface of vision-language models: it takes a prompt and returns embeddings and features of tapped layers.

A prompt is one user turn in the model's own chat template, padded on the left: the images of the present views in a
fixed order, then the instruction. Views come first, so the visual features of a causal model contain no language. For
a prior without language with any model (PaliGemma is not causal), prepare prompts with `blind=True`.
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
    """A batch of tokenised prompts.

    Attributes:
        ids: Token ids, (B, L).
        present: Tokens that are not padding, (B, L) bool.
        token_type: (B, L), see `VLFeatures`.
        view: (B, L), see `VLFeatures`.
        uv: (B, L, 2), see `VLFeatures`.
        word: Tokens of the instruction itself, (B, L) bool.
        query: Learned queries, (B, L) bool.
        pixels: Inputs of the vision tower, by the model's own argument names.
    """

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
    """Token ids of a user turn, in this order: `before`; for each view `opening`, visual tokens, `closing`; `lead`, the
    instruction `text`, `after`."""

    text: list[int]
    before: Sequence[int] = ()
    opening: Sequence[int] = ()
    closing: Sequence[int] = ()
    lead: Sequence[int] = ()
    after: Sequence[int] = ()


@dataclass
class _Row:
    """The prompt of one sample, while it is built."""

    ids: list[int] = field(default_factory=list)
    token_type: list[int] = field(default_factory=list)
    view: list[int] = field(default_factory=list)
    word: list[bool] = field(default_factory=list)
    query: list[bool] = field(default_factory=list)
    uv: Tensor = field(default_factory=lambda: torch.zeros(0, 2))
    images: list[np.ndarray] = field(default_factory=list)

    def add_text(self, ids: Sequence[int], word: bool = False, query: bool = False) -> None:
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
    """Resize an image with its aspect ratio kept, and pad it with black bars.

    Downscaling averages areas; upscaling is bicubic.

    Returns:
        The padded image, and (left, top, right, bottom) of the original image in it, in fractions of the padded image.
    """
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
    """A vision-language model, as the experts use it."""

    shape: VLMShape
    image_size: tuple[int, int]  # height, width of the vision tower's input
    grid: tuple[int, int]  # rows, columns of visual tokens per view
    image_id: int
    pad_id: int
    mode: VLMMode = "frozen"
    tied = True  # whether the input embeddings are also the output layer
    plain_words = False  # whether words stay their embeddings in every layer; see `VLMSpec`
    causal = True  # whether a token attends only to earlier tokens (and to its own view)
    queries: nn.Parameter | None  # learned tokens next to the instruction, (K, width); see langforce.py

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
        """The norm after the last decoder layer."""

    @abstractmethod
    def turn(self, text: str) -> Turn:
        """Tokenise `text` in the model's chat template."""

    @abstractmethod
    def pack(self, images: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """Convert the images of each sample, uint8 (*image_size, 3), to the vision tower's arguments."""

    @abstractmethod
    def read(self, prompt: Prompt, layers: tuple[int, ...], kv: bool) -> VLFeatures:
        """Run the model up to the last layer in `layers` (all layers if `kv`)."""

    def prepare(
        self,
        views: Sequence[Views],
        instructions: Sequence[str],
        blind: bool = False,
        queries_first: bool = False,
    ) -> Prompt:
        """Tokenise a batch of prompts, on the CPU.

        Args:
            views: For each sample the images of its views, uint8 (H, W, 3), or None for a missing camera.
            instructions: The instruction of each sample.
            blind: Leave the instructions out.
            queries_first: Put the learned queries before the instruction instead of after it.

        Raises:
            UserError: An image has the wrong type or shape, or an instruction is too long for the model.
        """
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
        """Build one prompt, without padding."""
        rows, cols = self.grid
        v, u = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(cols) + 0.5) / cols, indexing="ij")
        centre, half = np.stack([u, v], -1).reshape(-1, 2), np.array([0.5 / cols, 0.5 / rows])
        turn, row = self.turn(text), _Row()
        row.add_text(turn.before)
        for index, image in enumerate(views):
            if image is None:
                continue
            picture, (left, top, right, bottom) = letterbox(_checked(image, index), *self.image_size)
            low, high = np.array([left, top]), np.array([right, bottom])
            seen = ((centre + half > low) & (centre - half < high)).all(-1)  # not only letterbox bars
            row.add_text(turn.opening)
            uv = torch.from_numpy((centre - low) / (high - low)).float()
            row.add([self.image_id] * len(centre), np.where(seen, VISION, PAD).tolist(), index, uv)
            row.add_text(turn.closing)
            row.images.append(picture)
        row.add_text(turn.lead)
        queries = [] if self.queries is None else [self.pad_id] * len(self.queries)
        row.add_text(queries if queries_first else [], query=True)
        row.add_text(turn.text, word=True)
        row.add_text([] if queries_first else queries, query=True)
        row.add_text(turn.after)
        return row

    def forward(self, prompt: Prompt, layers: tuple[int, ...], kv: bool = False) -> VLFeatures:
        """Compute the features of a prompt; without gradients if the model is frozen.

        Args:
            prompt: A batch of prompts, on the model's device.
            layers: Indices of the decoder layers to tap.
            kv: Whether to return the keys and values of all layers.
        """
        with torch.no_grad() if self.mode == "frozen" else nullcontext():
            return self.read(prompt, layers, kv)

    def add_queries(self, count: int) -> None:
        """Add `count` learned queries: the mean word embedding plus noise of deviation 0.02 from a fixed seed."""
        words = self.word_embedding.weight.detach()
        generator = torch.Generator().manual_seed(42)
        noise = torch.randn(count, words.shape[1], generator=generator, device="cpu")
        self.queries = nn.Parameter(words.float().mean(0) + 0.02 * noise.to(words.device))
        self.set_mode(self.mode)

    def with_queries(self, x: Tensor, prompt: Prompt) -> Tensor:
        """Insert the queries into embeddings x (B, L, width)."""
        if self.queries is None:
            return x
        index = (prompt.query.long().cumsum(1) - 1).clamp(min=0)
        return torch.where(prompt.query[..., None], self.queries.to(x.dtype)[index], x)

    def set_mode(self, mode: VLMMode) -> None:
        """Set what trains. frozen: nothing. lora: adapters in all linear layers of the decoder. full: all weights."""
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
        """As in torch, but a frozen model stays in evaluation mode."""
        return super().train(mode and self.mode != "frozen")


def _checked(image: np.ndarray, index: int) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"Image of view {index} is {image.dtype} {tuple(image.shape)}; it must be uint8 (height, width, 3)."
        )
    return image
