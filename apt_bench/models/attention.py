"""Parts of the expert's transformer: norms, position codes, masks, attention and the block.

The token stream has two parts, vision-language (VL) tokens and action tokens. VL tokens never attend to action tokens.
So the two parts run one after the other with the same weights: the VL part first, whose keys and values are kept, then
the action part, which attends to them. The result equals one joint pass under the block-causal mask. In sampling, the
VL part runs once per decision instead of once per denoising step.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_bench.models.action_codes import rigid_inverse
from apt_bench.models.inputs import ACTION, LANGUAGE, PAD, VISION

Modulation = tuple[Tensor, Tensor]  # factor and shift of an adaptive norm
KV = tuple[Tensor, Tensor]  # position-coded keys and values, each (B, L, heads, head_dim)


def _normalise(x: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * w, statistics in float32 (Zhang & Sennrich, arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width), float32."""
        return _normalise(x) * self.weight


class AdaRMSNorm(nn.Module):
    """RMS norm whose scale and shift come from a condition c: norm(x) (1 + a) + b, (a, b) = Linear(c).

    The linear layer starts at zero, so an untrained block ignores the condition (adaLN-zero, arXiv 2212.09748)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B, A, width)."""
        factor, shift = step.modulation(self)
        return _normalise(x) * factor + shift

    def modulations(self, embedding: Tensor) -> Modulation:
        """1 + a and b for embeddings of the step (n, width), each (n, 1, width)."""
        scale, shift = self.modulation(embedding)[:, None].chunk(2, -1)
        return 1 + scale, shift


class Step:
    """The diffusion step of each sample as an embedding (B, width)."""

    def __init__(self, embedding: Tensor) -> None:
        self.embedding = embedding

    def modulation(self, norm: AdaRMSNorm) -> Modulation:
        """Factor and shift for `norm`, each (B, 1, width)."""
        return norm.modulations(self.embedding)


class TabulatedStep(Step):
    """A step of the sampler, the same for all samples. The modulations of all steps are computed once."""

    def __init__(self, table: dict[AdaRMSNorm, Modulation]) -> None:
        self.table = table

    @staticmethod
    def tabulate(expert: nn.Module, embeddings: Tensor) -> list[TabulatedStep]:
        """One step for each embedding, (steps, width)."""
        steps = [TabulatedStep({}) for _ in embeddings]
        for norm in expert.modules():
            if isinstance(norm, AdaRMSNorm):
                for step, factor, shift in zip(steps, *norm.modulations(embeddings), strict=True):
                    step.table[norm] = factor, shift
        return steps

    def modulation(self, norm: AdaRMSNorm) -> Modulation:
        """Factor and shift for `norm`, each (1, width)."""
        return self.table[norm]


class StreamNorm(nn.Module):
    """A plain norm for VL tokens, and one conditioned on the diffusion step for action tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vl = RMSNorm(width)
        self.action = AdaRMSNorm(width)

    def forward(self, x: Tensor, step: Step | None) -> Tensor:
        """x (B, L, width); `step` is None for VL tokens."""
        return self.vl(x) if step is None else self.action(x, step)


class FeedForward(nn.Module):
    """down( gelu_tanh(gate x) * up x ), inner width 2 x width, no biases (GEGLU, arXiv 2002.05202)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, 2 * width, bias=False)
        self.up_proj = nn.Linear(width, 2 * width, bias=False)
        self.down_proj = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


def small_mlp(inputs: int, width: int) -> nn.Sequential:
    """Linear, LayerNorm, GELU, Linear: the encoder of every low-dimensional input."""
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width))


class StepEmbedding(nn.Module):
    """Embed the diffusion step t (integer): sinusoids [sin(t f), cos(t f)], f_k = 1000^(-k/(width/2 - 1)), then
    `small_mlp`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.mlp = small_mlp(width, width)

    def sinusoid(self, t: Tensor) -> Tensor:
        """(B,) -> (B, width), sines first."""
        half = self.width // 2
        frequency = torch.exp(-math.log(1000.0) * torch.arange(half, device=t.device) / (half - 1))
        angle = t.float()[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], -1)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        return self.mlp(self.sinusoid(t))


class PositionCode(Protocol):
    """Encodes token positions into queries, keys and values, and decodes the output, (B, L, heads, head_dim)."""

    def encode(self, qk: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the code before attention: queries and keys (B, L, 2 heads, head_dim), values -> q, k, v."""
        ...

    def decode(self, out: Tensor) -> Tensor:
        """Undo the code of the values after attention."""
        ...


def _transform(M: Tensor, x: Tensor) -> Tensor:
    """Multiply each group of 4 channels in the first half of each head of x (B, L, H, d) from the right by the matrix
    of its token. M (B L, 4, 4), or (2 B L, 4, 4) with a matrix for the first heads and one for the others."""
    first, second = x.chunk(2, -1)
    with torch.autocast(x.device.type, enabled=False):
        moved = torch.bmm(first.float().reshape(len(M), -1, 4), M).view(first.shape)
    return torch.cat([moved.to(x.dtype), second], -1)


class PRoPE:
    """Projective positional encoding (Li et al. 2025, arXiv 2507.10496) on the FIRST half of each head.

    Only extrinsics are encoded. With token poses M_i (B, L, 4, 4), for every group of 4 channels: q <- M_i^-T q,
    k <- M_j k, v <- M_j v, and after attention o <- M_i^-1 o. The result depends only on relative poses M_i^-1 M_j.
    """

    def __init__(self, pose: Tensor) -> None:
        pose = pose.float()
        inverse = rigid_inverse(pose)
        # Rows are multiplied from the right, so these are the transposes of the matrices above.
        self.inverse, turned = inverse.transpose(-1, -2).flatten(0, 1), pose.transpose(-1, -2)
        self.qk, self.pose = torch.stack([inverse, turned], 2).flatten(0, 2), turned.flatten(0, 1)

    def encode(self, qk: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the code before attention."""
        q, k = _transform(self.qk, qk).chunk(2, 2)
        return q, k, _transform(self.pose, v)

    def decode(self, out: Tensor) -> Tensor:
        """Undo the code of the values after attention."""
        return _transform(self.inverse, out)


class RoPE:
    """Rotary position code (Su et al., arXiv 2104.09864) on the SECOND half of each head of queries and keys.

    Positions are 1-D, (B, L). Of the n = head_dim / 2 channels, neighbouring pairs are rotated by
    position * 10000^(-2m/n), m = 0 ... n/2 - 1.
    """

    def __init__(self, position: Tensor, head_dim: int) -> None:
        n = head_dim // 2
        frequency = 10000.0 ** (-torch.arange(0, n, 2, device=position.device, dtype=torch.float32) / n)
        angle = position.float()[..., None] * frequency
        self.cos, self.sin = angle.cos()[:, :, None], angle.sin()[:, :, None]  # (B, L, 1, n/2)

    def encode(self, qk: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the code before attention."""
        unchanged, rotated = qk.chunk(2, -1)
        a, b = rotated.unflatten(-1, (-1, 2)).unbind(-1)
        pairs = torch.stack([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1).flatten(-2)
        q, k = torch.cat([unchanged, pairs.to(qk.dtype)], -1).chunk(2, 2)
        return q, k, v

    def decode(self, out: Tensor) -> Tensor:
        """Return the output unchanged: values are not coded."""
        return out


class NoCode:
    """No position code: the tokens contain their positions."""

    def encode(self, qk: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values unchanged."""
        q, k = qk.chunk(2, 2)
        return q, k, v

    def decode(self, out: Tensor) -> Tensor:
        """Return the output unchanged."""
        return out


def visual_positions(is_visual: Tensor) -> Tensor:
    """Rotary positions of VL tokens, (B, L): p_j = j - max(c_j - 1, 0), c_j = number of visual tokens up to and with j.

    All visual tokens of a view share one position."""
    j = torch.arange(is_visual.shape[1], device=is_visual.device)
    return j - (is_visual.long().cumsum(1) - 1).clamp(min=0)


def attention_mask(query: Tensor, key: Tensor, isolated: bool) -> Tensor:
    """The attention mask, (B, Q, K) bool, True = may attend.

    VL queries attend to no action keys because the VL part of the stream runs before them, not because of this mask.

    Args:
        query: Token types of the queries, (B, Q).
        key: Token types of the keys, (B, K). Padding is never attended to.
        isolated: False (full mask): every query attends to every valid key. True: vision and action tokens do not
            attend to language tokens, and language tokens attend only to language tokens. Padding queries are not
            restricted, as their output is not used.
    """
    q, k = query[..., :, None], key[..., None, :]
    allowed = (k != PAD).expand(*q.shape[:-1], k.shape[-1])
    if isolated:
        sighted = (q == VISION) | (q == ACTION)
        allowed = allowed & ~(sighted & (k == LANGUAGE)) & ~((q == LANGUAGE) & (k != LANGUAGE))
    return allowed


def attention_bias(mask: Tensor) -> Tensor:
    """The same mask as numbers that are added to the attention's logits, float32: 0 = may attend, -inf = may not.

    `attend` takes both. For a bool mask, `scaled_dot_product_attention` makes these numbers at each call."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -math.inf)


def joint_mask(vl_type: Tensor, action_type: Tensor, isolated: bool) -> Tensor:
    """The block-causal mask of the whole stream, (B, L+A, L+A): `attention_mask` without VL queries on action keys."""
    types = torch.cat([vl_type, action_type], 1)
    mask = attention_mask(types, types, isolated).clone()
    L = vl_type.shape[1]
    mask[:, :L, L:] = False
    return mask


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, code: PositionCode) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, (B, Q, H d).

    It always uses `scaled_dot_product_attention`. Eager implementations would ADD a bool mask, so that vision tokens
    would see language.

    Args:
        q: (B, Q, H, d), position-coded.
        k: (B, K, H', d), where H' divides H.
        v: (B, K, H', d).
        mask: (B, Q, K) bool, or its `attention_bias`.
        code: The position code to undo in the output.
    """
    mask = mask if mask.dtype == torch.bool else mask.to(q.dtype)
    q, k, v = q.transpose(1, 2), k.to(q.dtype).transpose(1, 2), v.to(q.dtype).transpose(1, 2)
    grouped = bool(q.shape[1] != k.shape[1])  # a tensor while it is traced
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], enable_gqa=grouped)
    return code.decode(out.transpose(1, 2)).flatten(2)


class Attention(nn.Module):
    """Multi-head attention with one q|k|v linear layer and RMSNorm on q and k per head, before the position code."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.out = nn.Linear(width, width)

    def project(self, x: Tensor, code: PositionCode) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, L, width) -> position-coded q, k, v, each (B, L, heads, head_dim)."""
        qk, v = self.qkv(x).unflatten(-1, (3 * self.heads, -1)).split([2 * self.heads, self.heads], 2)
        norms = (self.q_norm.weight, self.k_norm.weight)
        weight = torch.cat([w.expand(self.heads, -1) for w in norms])
        return code.encode(_normalise(qk) * weight, v)


class Block(nn.Module):
    """Pre-norm transformer block: x += Attn(norm1(x)); x += FFN(norm2(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = StreamNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = StreamNorm(width)
        self.ffn = FeedForward(width)

    def make_identity(self) -> None:
        """Make the block the identity by setting its output layers to zero."""
        for p in (*self.attn.out.parameters(), *self.ffn.down_proj.parameters()):
            p.zero_()

    def forward(
        self,
        x: Tensor,
        code: PositionCode,
        mask: Tensor,
        step: Step | None = None,
        past: KV | None = None,
        kv_only: bool = False,
    ) -> tuple[Tensor, KV]:
        """Run one part of the stream through the block.

        Args:
            x: One part of the stream, (B, Q, width).
            code: The position code of its tokens.
            mask: (B, Q, K) as for `attend`, K = keys in `past` + own keys.
            step: The diffusion step for action tokens, None for VL tokens.
            past: Keys and values of the other part.
            kv_only: Compute only keys and values: nothing reads the VL stream after the last block.

        Returns:
            The new stream, (B, Q, width), and its own keys and values.
        """
        q, k, v = self.attn.project(self.norm1(x, step), code)
        own = (k, v)
        if kv_only:
            return x, own
        if past is not None:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v.to(past[1].dtype)], 1)
        x = x + self.attn.out(attend(q, k, v, mask, code))
        return x + self.ffn(self.norm2(x, step)), own
