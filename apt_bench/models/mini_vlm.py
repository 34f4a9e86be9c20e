"""A vision-language model of about a million parameters, for learning and tests without a hub or a GPU.

A convolutional stem turns each view into a grid of visual tokens; a small decoder lets the tokens of a view see
each other and text see all views and the text before it. Visual tokens never see text, as in SmolVLM or Qwen-VL,
so features of a frame do not depend on the instruction. Known words are one token each, any other word is spelled
in bytes: a new noun stays distinguishable from every other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_bench.core.config import Range, check_fields
from apt_bench.core.errors import UserError
from apt_bench.models.attention import KV, Attention, FeedForward, NoCode, RMSNorm, attend
from apt_bench.models.config import Heads, Layers, VLMShape
from apt_bench.models.inputs import VLFeatures
from apt_bench.models.vlm import VLM, Prompt, Turn

Side = Annotated[int, Range(least=8, most=4096)]
"""Pixels of an image's side."""

PAD_ID, BOS_ID, END_ID, IMAGE_ID, FIRST_BYTE = 0, 1, 2, 3, 4
FIRST_WORD = FIRST_BYTE + 256


@dataclass(frozen=True)
class MiniVLMConfig:
    """`words` are the known words; image_size is (height, width) in pixels, both multiples of `stride` (a power
    of 2). views: how many views it can tell apart; any further ones look like the last."""

    words: tuple[str, ...] = ()
    width: Annotated[int, Range(least=16, most=4096)] = 128
    heads: Heads = 4
    layers: Layers = 3
    image_size: tuple[Side, Side] = (128, 128)
    stride: Annotated[int, Range(least=2, most=256)] = 16
    max_text: Annotated[int, Range(least=3, most=65_536)] = 96
    views: Annotated[int, Range(least=1, most=64)] = 2

    def __post_init__(self) -> None:
        check_fields(self, "Mini VLM")
        if self.width % self.heads:
            raise UserError(f"Mini VLM: width {self.width} is not a multiple of {self.heads} heads.")
        if any(side % self.stride for side in self.image_size) or self.stride & (self.stride - 1):
            raise UserError(
                f"Mini VLM: image size {self.image_size} and stride {self.stride}; the stride must be a power of 2 "
                "that divides both sides."
            )


class MiniTokenizer:
    """Lower-case words and punctuation; what is not in `words` becomes its UTF-8 bytes."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.ids = {word: FIRST_WORD + i for i, word in enumerate(words)}
        self.size = FIRST_WORD + len(words)

    def __call__(self, text: str) -> list[int]:
        """Token ids, without begin and end."""
        out = []
        for piece in re.findall(r"\w+|[^\w\s]", text.lower()):
            known = self.ids.get(piece)
            out += [known] if known is not None else [FIRST_BYTE + byte for byte in piece.encode()]
        return out


class MiniBlock(nn.Module):
    """Pre-norm decoder layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = Attention(width, heads)
        self.ffn = FeedForward(width)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, KV, Tensor]:
        """x (B, L, width), mask (B, L, L) -> the new x, keys and values, and the queries."""
        q, k, v = self.attn.project(self.norm1(x), NoCode())
        x = x + self.attn.out(attend(q, k, v, mask, NoCode()))
        return x + self.ffn(self.norm2(x)), (k, v), q


class Stem(nn.Module):
    """Strided convolutions down to one vector per visual token, then a residual block."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        halvings = stride.bit_length() - 1
        widths = [3, *(max(16, width >> (halvings - 1 - i)) for i in range(halvings))]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.mix = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width), nn.GELU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, width, rows, columns)."""
        for conv in self.down:
            images = F.gelu(conv(images))
        return images + self.mix(images)


class MiniVLM(VLM):
    """See the module's text. `decode` is the whole model; `read` is its view through the `VLM` interface."""

    def __init__(self, config: MiniVLMConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = MiniTokenizer(config.words)
        width, (h, w) = config.width, config.image_size
        self.image_size, self.grid = config.image_size, (h // config.stride, w // config.stride)
        self.image_id, self.pad_id = IMAGE_ID, PAD_ID
        self.shape = VLMShape(width, config.layers, config.heads, width // config.heads, None)
        self.stem = Stem(width, config.stride)
        self.cell_embed = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], width))
        self.view_embed = nn.Parameter(0.02 * torch.randn(config.views, width))
        self.word_embed = nn.Embedding(self.tokenizer.size, width)
        self.text_embed = nn.Embedding(config.max_text, width)
        nn.init.normal_(self.word_embed.weight, std=0.02)
        nn.init.normal_(self.text_embed.weight, std=0.02)
        self.layers = nn.ModuleList(MiniBlock(width, config.heads) for _ in range(config.layers))
        self.norm = RMSNorm(width)

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The blocks."""
        return self.layers

    @property
    def word_embedding(self) -> nn.Embedding:
        """Of words and bytes."""
        return self.word_embed

    @property
    def final_norm(self) -> nn.Module:
        """Behind the last block."""
        return self.norm

    def turn(self, text: str) -> Turn:
        """Images, then begin, text, end."""
        ids = self.tokenizer(text)
        if len(ids) + 2 > self.config.max_text:
            raise UserError(
                f"Instruction of {len(ids) + 2} tokens: '{text[:60]}...'; the mini VLM reads at most "
                f"{self.config.max_text}. "
                "Shorten it, or raise max_text and pretrain again."
            )
        return Turn(lead=[BOS_ID], text=ids, after=[END_ID])

    def pack(self, images: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """All present images in order, (n, 3, H, W) in -1 ... 1."""
        flat = [image for sample in images for image in sample]
        stacked = np.stack(flat) if flat else np.zeros((0, *self.image_size, 3), np.uint8)
        return {"images": torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1}

    def embed_images(self, images: Tensor, view: Tensor) -> Tensor:
        """(n, 3, H, W) in -1 ... 1, and which view each is, (n,) -> (n, cells, width), row-major."""
        whose = self.view_embed[view.clamp(max=self.config.views - 1)]
        return self.stem(images).flatten(2).transpose(1, 2) + self.cell_embed + whose[:, None]

    def embed_text(self, ids: Tensor, index: Tensor) -> Tensor:
        """Token ids and their index in their sentence, (B, L) -> (B, L, width)."""
        return self.word_embed(ids) + self.text_embed(index.clamp(0, self.config.max_text - 1))

    def decode(
        self, x: Tensor, mask: Tensor, layers: int | None = None
    ) -> tuple[list[Tensor], list[KV], list[Tensor]]:
        """The first `layers` (default all) over tokens x (B, L, width) under `mask` (B, L, L): outputs, keys and
        values, and queries per layer (queries and keys give the attention maps that pretraining may
        supervise)."""
        outputs, kv, queries = [], [], []
        for layer in self.layers[:layers]:
            x, pair, q = layer(x, mask)
            outputs.append(x)
            kv.append(pair)
            queries.append(q)
        return outputs, kv, queries

    def read(self, prompt: Prompt, layers: tuple[int, ...], kv: bool) -> VLFeatures:
        """One pass over images and text."""
        visual = prompt.view >= 0
        text = prompt.present & ~visual
        # Queries have no place in the sentence: word n is word n whether they stand before it or behind.
        x = self.embed_text(prompt.ids, (text & ~prompt.query).long().cumsum(1) - 1)
        x = self.with_queries(x, prompt)
        view = prompt.view[visual].reshape(-1, len(self.cell_embed))[:, 0]
        seen = self.embed_images(prompt.pixels["images"], view)
        x = x.masked_scatter(visual[..., None], seen.to(x.dtype))
        needed = None if kv else max(layers, default=-1) + 1
        outputs, pairs, _ = self.decode(x, mini_mask(prompt.view, text.long()), needed)
        return VLFeatures(
            embeds=x,
            taps=torch.stack([outputs[i] for i in layers]) if layers else x.new_zeros(0, *x.shape),
            layers=tuple(layers),
            token_type=prompt.token_type,
            view=prompt.view,
            uv=prompt.uv,
            kv=tuple(pairs) if kv else (),
        )


def mini_mask(view: Tensor, sentence: Tensor) -> Tensor:
    """Who sees whom, (B, L, L) bool: a visual token its own view; a word all views and the words before it in its
    sentence.

    view (B, L), -1 off images; sentence (B, L), 0 off text, else 1, 2, ...: several sentences may share one
    image's pass.
    """
    q_view, k_view = view[:, :, None], view[:, None, :]
    q_text, k_text = sentence[:, :, None], sentence[:, None, :]
    L = view.shape[1]
    before = torch.ones(L, L, dtype=torch.bool, device=view.device).tril()
    within_view = (q_view >= 0) & (q_view == k_view)
    of_word = (q_text > 0) & ((k_view >= 0) | ((q_text == k_text) & before))
    alone = torch.eye(L, dtype=torch.bool, device=view.device)  # so that padding has something to see
    return within_view | of_word | alone
