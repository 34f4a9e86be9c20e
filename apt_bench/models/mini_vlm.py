"""A vision-language model of about a million parameters, for training and tests without a hub or a GPU.

A convolutional stem turns each view into a grid of visual tokens. In a small decoder, the tokens of a view attend to
each other, and text attends to all views and to the text before it. Visual tokens never attend to text, as in SmolVLM
or Qwen-VL, so the features of an image do not depend on the instruction. A word of the vocabulary is one token. Any
other word is a sequence of bytes, so that new nouns stay distinguishable.
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
from apt_bench.models.attention import KV, Attention, FeedForward, NoCode, RMSNorm, attend, attention_bias
from apt_bench.models.config import Heads, Layers, VLMShape
from apt_bench.models.inputs import VLFeatures
from apt_bench.models.vlm import VLM, Prompt, Turn

Side = Annotated[int, Range(least=8, most=4096)]
"""Height or width of an image in pixels."""

PAD_ID, BOS_ID, END_ID, IMAGE_ID, FIRST_BYTE = 0, 1, 2, 3, 4
FIRST_WORD = FIRST_BYTE + 256


@dataclass(frozen=True)
class MiniVLMConfig:
    """Sizes of a mini VLM.

    Attributes:
        words: The vocabulary.
        width: Channels of a token.
        heads: Attention heads.
        layers: Decoder layers.
        image_size: (height, width) in pixels, both multiples of `stride`.
        stride: Pixels per visual token, a power of 2.
        max_text: Maximum number of text tokens.
        views: Number of views with an embedding of their own; further views share the last one.
    """

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
    """Splits text into lower-case words and punctuation. What is not in `words` becomes its UTF-8 bytes."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.ids = {word: FIRST_WORD + i for i, word in enumerate(words)}
        self.size = FIRST_WORD + len(words)

    def __call__(self, text: str) -> list[int]:
        """Token ids, without begin and end tokens."""
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
        """x (B, L, width), mask (B, L, L) as for `attend` -> the new x, keys and values, and queries."""
        q, k, v = self.attn.project(self.norm1(x), NoCode())
        x = x + self.attn.out(attend(q, k, v, mask, NoCode()))
        return x + self.ffn(self.norm2(x)), (k, v), q


class Stem(nn.Module):
    """Strided convolutions to one vector per visual token, then a residual block."""

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
    """See the module's docstring. `decode` runs the decoder; `read` implements the `VLM` interface with it."""

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
        """The embeddings of words and bytes."""
        return self.word_embed

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block."""
        return self.norm

    def turn(self, text: str) -> Turn:
        """Images, then begin token, text and end token. Raises UserError for a text that is too long."""
        ids = self.tokenizer(text)
        if len(ids) + 2 > self.config.max_text:
            raise UserError(
                f"Instruction of {len(ids) + 2} tokens: '{text[:60]}...'; the mini VLM accepts at most "
                f"{self.config.max_text}. "
                "Shorten it, or raise max_text and pretrain again."
            )
        return Turn(lead=[BOS_ID], text=ids, after=[END_ID])

    def pack(self, images: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """All present images in order, (n, 3, H, W), values in [-1, 1]."""
        flat = [image for sample in images for image in sample]
        stacked = np.stack(flat) if flat else np.zeros((0, *self.image_size, 3), np.uint8)
        return {"images": torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1}

    def embed_images(self, images: Tensor, view: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [-1, 1] and their views (n,) -> visual tokens (n, cells, width), row-major."""
        whose = self.view_embed[view.clamp(max=self.config.views - 1)]
        return self.stem(images).flatten(2).transpose(1, 2) + self.cell_embed + whose[:, None]

    def embed_text(self, ids: Tensor, index: Tensor) -> Tensor:
        """Token ids and their indices in their sentence, (B, L) -> embeddings (B, L, width)."""
        return self.word_embed(ids) + self.text_embed(index.clamp(0, self.config.max_text - 1))

    def decode(
        self, x: Tensor, mask: Tensor, layers: int | None = None, plain: Tensor | None = None
    ) -> tuple[list[Tensor], list[KV], list[Tensor]]:
        """Run the decoder.

        Args:
            x: Tokens, (B, L, width).
            mask: (B, L, L) bool, True = may attend.
            layers: Number of layers to run; by default all.
            plain: (B, L) bool, tokens that every layer leaves as they are in `x`.

        Returns:
            For each layer its output, its keys and values, and its queries. Queries and keys give the attention maps
            that pretraining may supervise.
        """
        outputs, kv, queries = [], [], []
        state, bias = x, attention_bias(mask)
        for layer in self.layers[:layers]:
            state, pair, q = layer(state, bias)
            if plain is not None:
                state = torch.where(plain[..., None], x, state)
            outputs.append(state)
            kv.append(pair)
            queries.append(q)
        return outputs, kv, queries

    def read(self, prompt: Prompt, layers: tuple[int, ...], kv: bool) -> VLFeatures:
        """Run the model on images and text."""
        visual = prompt.view >= 0
        text = prompt.present & ~visual
        # Queries do not count as words: word n has index n whether they come before or after it.
        x = self.embed_text(prompt.ids, (text & ~prompt.query).long().cumsum(1) - 1)
        x = self.with_queries(x, prompt)
        view = prompt.view[visual].reshape(-1, len(self.cell_embed))[:, 0]
        seen = self.embed_images(prompt.pixels["images"], view)
        x = x.masked_scatter(visual[..., None], seen.to(x.dtype))
        needed = None if kv else max(layers, default=-1) + 1
        plain = text & ~prompt.query if self.plain_words else None
        outputs, pairs, _ = self.decode(x, mini_mask(prompt.view, text.long()), needed, plain)
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
    """The attention mask, (B, L, L) bool, True = may attend.

    A visual token attends to its own view. A word attends to all views and to the words before it in its sentence.

    Args:
        view: (B, L), index of the view of a visual token, -1 for other tokens.
        sentence: (B, L), number of the sentence of a text token, from 1; 0 for other tokens. Several sentences may
            share one pass over the images.
    """
    q_view, k_view = view[:, :, None], view[:, None, :]
    q_text, k_text = sentence[:, :, None], sentence[:, None, :]
    L = view.shape[1]
    before = torch.ones(L, L, dtype=torch.bool, device=view.device).tril()
    within_view = (q_view >= 0) & (q_view == k_view)
    of_word = (q_text > 0) & ((k_view >= 0) | ((q_text == k_text) & before))
    alone = torch.eye(L, dtype=torch.bool, device=view.device)  # so that padding attends to something
    return within_view | of_word | alone
