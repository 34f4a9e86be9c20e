"""The pi-style rival: action tokens attend to the VLM's keys and values, layer by layer.

It follows pi0 (arXiv 2410.24164; openpi): one expert block per VLM layer, whose queries attend to the VLM's keys and
values of that layer and to the other action tokens. The expert has the VLM's number of key-value heads, head size and
rotary code, but its own weights. Inputs, outputs and loss are those of APT, so that only the architecture differs.
Stage 1 masks language keys, Stage 2 does not, and Stage 2 has no new blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apt_bench.models.action_expert import ActionExpert, Context, Memory
from apt_bench.models.attention import (
    KV,
    AdaRMSNorm,
    FeedForward,
    NoCode,
    RMSNorm,
    Step,
    attend,
    attention_bias,
    attention_mask,
)
from apt_bench.models.config import ExpertConfig, VLMShape
from apt_bench.models.inputs import RobotState, VLFeatures


class HalfSplitRoPE:
    """The VLMs' rotary code: channels m and m + head_dim/2 rotate by position * theta^(-2m/head_dim)."""

    def __init__(self, position: Tensor, head_dim: int, theta: float) -> None:
        exponent = torch.arange(0, head_dim, 2, device=position.device, dtype=torch.float32) / head_dim
        angle = position.float()[..., None] * theta**-exponent
        self.cos, self.sin = angle.cos()[:, :, None], angle.sin()[:, :, None]

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate queries or keys, (B, L, heads, head_dim)."""
        a, b = x.float().chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1).to(x.dtype)


class PiBlock(nn.Module):
    """A transformer block whose key-value heads match the VLM's; queries are grouped over them."""

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        vlm, width = config.vlm, config.width
        self.groups = max(1, config.heads // vlm.kv_heads)
        self.kv_heads, self.head_dim = vlm.kv_heads, vlm.head_dim
        q_width, kv_width = self.groups * vlm.kv_heads * vlm.head_dim, vlm.kv_heads * vlm.head_dim
        self.norm1, self.norm2 = AdaRMSNorm(width), AdaRMSNorm(width)
        self.q = nn.Linear(width, q_width)
        self.kv = nn.Linear(width, 2 * kv_width)
        self.q_norm, self.k_norm = RMSNorm(vlm.head_dim), RMSNorm(vlm.head_dim)
        self.out = nn.Linear(q_width, width)
        self.ffn = FeedForward(width)

    def forward(
        self, x: Tensor, code: HalfSplitRoPE | None, mask: Tensor, step: Step, past: KV
    ) -> tuple[Tensor, KV]:
        """x (B, A, width); mask (B, A, L+A); past = the VLM's keys and values, (B, L, kv_heads, head_dim)."""
        h = self.norm1(x, step)
        q = self.q_norm(self.q(h).unflatten(-1, (-1, self.head_dim)))
        k, v = self.kv(h).unflatten(-1, (2, self.kv_heads, self.head_dim)).unbind(2)
        k = self.k_norm(k)
        if code:
            q, k = code(q), code(k)
        keys, values = (torch.cat([a.to(b.dtype), b], 1) for a, b in zip(past, (k, v), strict=True))
        x = x + self.out(attend(q, keys, values, mask, NoCode()))
        return x + self.ffn(self.norm2(x, step)), (k, v)


class PiExpert(ActionExpert):
    """See the module's docstring."""

    needs_kv = True

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__(config, step_index=True)
        self.blocks = nn.ModuleList(PiBlock(config) for _ in range(config.depth))

    @property
    def needed_layers(self) -> tuple[int, ...]:
        """None: this expert uses keys and values, not outputs."""
        return ()

    def encode_context(
        self, features: VLFeatures, robot: RobotState, rotation: Tensor | None = None
    ) -> Context:
        """Use the VLM's keys and values as context."""
        world, robot = robot, robot.recentred(rotation)
        prefix = self.tokens.prefix(robot, world)
        types = self._action_types(robot, prefix.shape[2] + self.config.horizon)
        everyone = torch.cat([features.token_type, types], 1)
        mask = attention_bias(attention_mask(types, everyone, isolated=self.config.stage == 1))
        code = self._code(features, prefix, self.config.vlm)
        return Context(robot, prefix, tuple(Memory(mask, code, kv) for kv in features.kv))

    def _code(self, features: VLFeatures, prefix: Tensor, vlm: VLMShape) -> HalfSplitRoPE | None:
        """The position code of action tokens. Their positions follow the last visual token, whatever text comes after
        it, so that a prior's positions do not reveal the length of the instruction."""
        if vlm.rope_theta is None or features.position is None:
            return None
        last = torch.where(features.is_visual, features.position, 0).amax(1, keepdim=True)
        index = self._action_index(prefix.shape[1], prefix.shape[2], self.config.horizon, last.device)
        return HalfSplitRoPE(last + 1 + index, vlm.head_dim, vlm.rope_theta)
