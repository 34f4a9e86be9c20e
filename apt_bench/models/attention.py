"""The pieces of the expert's transformer: norms, position codes, masks, attention and the block.

The stream has two parts, vision-language (VL) tokens and action tokens. VL tokens never attend to action tokens, so the
two parts run one after the other with the same weights: first the VL part, which leaves its keys and values behind,
then the action part, which reads them. The result is that of one joint pass under the block-causal mask, but at
sampling time the VL part runs once per decision instead of once per denoising step.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_bench.models.action_codes import rigid_inverse
from apt_bench.models.inputs import ACTION, LANGUAGE, PAD, VISION

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
    """RMS normalisation whose scale and shift come from a condition: norm(x) (1 + a) + b, (a, b) = Linear(c).

    The linear starts at zero, so an untrained block ignores the condition (adaLN-zero, arXiv 2212.09748)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x (B, A, width)."""
        scale, shift = step.modulation(self)[:, None].chunk(2, -1)
        return _normalise(x) * (1 + scale) + shift


class Step:
    """The diffusion step of each sample, by its embedding (B, width)."""

    def __init__(self, embedding: Tensor) -> None:
        self.embedding = embedding

    def modulation(self, norm: AdaRMSNorm) -> Tensor:
        """What `norm` makes of it, (B, 2 * width)."""
        return norm.modulation(self.embedding)


class TabulatedStep(Step):
    """A step of the sampler: the same for all samples, with the modulations of all steps computed in one go."""

    def __init__(self, table: dict[AdaRMSNorm, Tensor], row: int) -> None:
        self.table, self.row = table, row

    @staticmethod
    def tabulate(expert: nn.Module, embeddings: Tensor) -> dict[AdaRMSNorm, Tensor]:
        """Modulations by norm for step embeddings (steps, width)."""
        return {m: m.modulation(embeddings) for m in expert.modules() if isinstance(m, AdaRMSNorm)}

    def modulation(self, norm: AdaRMSNorm) -> Tensor:
        """(1, 2 * width)."""
        return self.table[norm][self.row : self.row + 1]


class StreamNorm(nn.Module):
    """One norm for each part of the stream: plain for VL tokens, conditioned on the diffusion step for action
    tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vl = RMSNorm(width)
        self.action = AdaRMSNorm(width)

    def forward(self, x: Tensor, step: Step | None) -> Tensor:
        """`step` for action tokens, None for VL tokens."""
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
    """Diffusion step t (integer) -> (B, width): sinusoids [sin(t f), cos(t f)], f_k = 1000^(-k/(width/2 - 1)),
    small MLP."""

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
    """Marks queries, keys and values (B, L, heads, head_dim) with where their token is, and unmarks the output."""

    def encode(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Before attention."""
        ...

    def decode(self, out: Tensor) -> Tensor:
        """After attention."""
        ...


def _transform(M: Tensor, x: Tensor) -> Tensor:
    """Apply M (B, L, 4, 4) to each group of 4 channels in the first half of the heads of x (B, L, H, d)."""
    B, L, H, d = x.shape
    first, second = x.chunk(2, -1)
    with torch.autocast(x.device.type, enabled=False):
        groups = first.float().reshape(B, L, H * d // 8, 4)
        moved = (groups @ M.transpose(-1, -2)).reshape(B, L, H, d // 2)
    return torch.cat([moved.to(x.dtype), second], -1)


class PRoPE:
    """Projective positional encoding (Li et al. 2025, arXiv 2507.10496), extrinsics only, on the FIRST half of
    each head.

    With token poses M_i (B, L, 4, 4), for every group of 4 channels: q <- M_i^-T q, k <- M_j k, v <- M_j v, and after
    attention o <- M_i^-1 o, so that only relative poses M_i^-1 M_j matter.
    """

    def __init__(self, pose: Tensor) -> None:
        self.pose = pose.float()
        self.inverse = rigid_inverse(self.pose)

    def encode(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Before attention."""
        inverse_t = self.inverse.transpose(-1, -2)
        return _transform(inverse_t, q), _transform(self.pose, k), _transform(self.pose, v)

    def decode(self, out: Tensor) -> Tensor:
        """After attention."""
        return _transform(self.inverse, out)


class RoPE:
    """Rotary code (Su et al., arXiv 2104.09864) of 1-D positions (B, L) on the SECOND half of each head, queries
    and keys.

    n = head_dim / 2 channels, neighbouring pairs turn by position * 10000^(-2m/n), m = 0 ... n/2 - 1.
    """

    def __init__(self, position: Tensor, head_dim: int) -> None:
        n = head_dim // 2
        frequency = 10000.0 ** (-torch.arange(0, n, 2, device=position.device, dtype=torch.float32) / n)
        angle = position.float()[..., None] * frequency
        self.cos, self.sin = angle.cos(), angle.sin()  # (B, L, n/2)

    def _turn(self, x: Tensor) -> Tensor:
        still, moving = x.chunk(2, -1)
        a, b = moving.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = self.cos[:, :, None], self.sin[:, :, None]
        pairs = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        return torch.cat([still, pairs.to(x.dtype)], -1)

    def encode(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Before attention."""
        return self._turn(q), self._turn(k), v

    def decode(self, out: Tensor) -> Tensor:
        """After attention: nothing to undo."""
        return out


class NoCode:
    """No position code: position is in the tokens themselves."""

    def encode(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Before attention."""
        return q, k, v

    def decode(self, out: Tensor) -> Tensor:
        """After attention."""
        return out


def visual_positions(is_visual: Tensor) -> Tensor:
    """Rotary positions of VL tokens: p_j = j - max(c_j - 1, 0), c_j = visual tokens up to and including j. (B, L).

    All tokens of the first view share one position; the two ends of later views move on by one."""
    j = torch.arange(is_visual.shape[1], device=is_visual.device)
    return j - (is_visual.long().cumsum(1) - 1).clamp(min=0)


def attention_mask(query: Tensor, key: Tensor, isolated: bool) -> Tensor:
    """Who may attend to whom: token types (B, Q) and (B, K) -> bool (B, Q, K), true = may attend.

    full: every query sees every valid key. isolated: vision and action do not see language, language sees neither;
    type-0 queries keep everything, as nobody reads them. That VL queries see no action keys is not decided here: the VL
    part of the stream runs before there are any.
    """
    q, k = query[..., :, None], key[..., None, :]
    allowed = (k != PAD).expand(*q.shape[:-1], k.shape[-1])
    if isolated:
        sighted = (q == VISION) | (q == ACTION)
        allowed = allowed & ~(sighted & (k == LANGUAGE)) & ~((q == LANGUAGE) & (k != LANGUAGE))
    return allowed


def joint_mask(vl_type: Tensor, action_type: Tensor, isolated: bool) -> Tensor:
    """The block-causal mask of the whole stream, (B, L+A, L+A): `attention_mask` minus VL queries on action keys."""
    types = torch.cat([vl_type, action_type], 1)
    mask = attention_mask(types, types, isolated).clone()
    L = vl_type.shape[1]
    mask[:, :L, L:] = False
    return mask


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, code: PositionCode) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: q (B, Q, H, d); k, v (B, K, H', d), H' dividing H; mask bool (B, Q, K) -> (B,
    Q, H d).

    Always sdpa: eager implementations would ADD a bool mask, and language would leak into vision."""
    q, k, v = q.transpose(1, 2), k.to(q.dtype).transpose(1, 2), v.to(q.dtype).transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], enable_gqa=grouped)
    return code.decode(out.transpose(1, 2)).flatten(2)


class Attention(nn.Module):
    """Multi-head attention with one q|k|v linear and QK-RMSNorm over the head dimension, before the position code."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.out = nn.Linear(width, width)

    def project(self, x: Tensor, code: PositionCode) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, L, width) -> position-coded q, k, v, each (B, L, heads, head_dim)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return code.encode(self.q_norm(q), self.k_norm(k), v)


class Block(nn.Module):
    """Pre-norm transformer block: x += Attn(norm1(x)); x += FFN(norm2(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = StreamNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = StreamNorm(width)
        self.ffn = FeedForward(width)

    def make_identity(self) -> None:
        """Make it the identity; what it would add begins at zero and learns from there."""
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
        """One part of the stream, x (B, Q, width), through the block; `past` holds the other part's keys and values.

        mask (B, Q, K), K = past + own. Returns the new stream and the own keys and values. `kv_only` stops once
        those are known: nothing reads the VL stream behind the last block.
        """
        q, k, v = self.attn.project(self.norm1(x, step), code)
        own = (k, v)
        if kv_only:
            return x, own
        if past is not None:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v.to(past[1].dtype)], 1)
        x = x + self.attn.out(attend(q, k, v, mask, code))
        return x + self.ffn(self.norm2(x, step)), own
