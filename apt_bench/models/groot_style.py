"""The GR00T-style rival: a diffusion transformer that cross-attends to one hidden layer of the VLM.

It follows GR00T N1 (arXiv 2503.14734) and its version in starVLA. Even blocks cross-attend to the VLM's last layer, odd
blocks self-attend over [state, 32 learned tokens, noisy actions]; norms are conditioned on the diffusion step. Inputs,
outputs and loss are those of APT, so that only the architecture differs. Stage 1 masks language keys in the
cross-attention, Stage 2 does not, and Stage 2 has no new blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apt_bench.models.action_expert import ActionExpert, Context, Memory
from apt_bench.models.attention import (
    KV,
    AdaRMSNorm,
    Attention,
    FeedForward,
    NoCode,
    PositionCode,
    RMSNorm,
    Step,
    attend,
    attention_bias,
    attention_mask,
)
from apt_bench.models.config import ExpertConfig
from apt_bench.models.inputs import ACTION, RobotState, VLFeatures

LEARNED_TOKENS = 32


class CrossAttention(nn.Module):
    """Attention to VLM features, whose keys and values are computed once."""

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.context_norm = RMSNorm(config.vlm.width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(config.vlm.width, 2 * width)
        self.q_norm, self.k_norm = RMSNorm(config.head_dim), RMSNorm(config.head_dim)
        self.out = nn.Linear(width, width)

    def keys_and_values(self, features: Tensor) -> KV:
        """(B, L, vlm width) -> keys and values (B, L, heads, head_dim)."""
        k, v = self.kv(self.context_norm(features)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return self.k_norm(k), v


class DiTBlock(nn.Module):
    """Pre-norm block with adaptive norms, and either cross-attention or self-attention."""

    def __init__(self, config: ExpertConfig, cross: bool) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = AdaRMSNorm(width), AdaRMSNorm(width)
        self.attn = CrossAttention(config) if cross else Attention(width, config.heads)
        self.ffn = FeedForward(width)

    def forward(
        self, x: Tensor, code: PositionCode | None, mask: Tensor, step: Step, past: KV | None
    ) -> tuple[Tensor, KV | None]:
        """x (B, A, width); mask (B, A, keys); past = keys and values for cross-attention."""
        h = self.norm1(x, step)
        attn = self.attn
        if isinstance(attn, CrossAttention):
            assert past is not None
            q = attn.q_norm(attn.q(h).unflatten(-1, (attn.heads, -1)))
            x = x + attn.out(attend(q, *past, mask, NoCode()))
        else:
            x = x + attn.out(attend(*attn.project(h, NoCode()), mask, NoCode()))
        return x + self.ffn(self.norm2(x, step)), past


class GR00TExpert(ActionExpert):
    """See the module's docstring. It has `config.depth` blocks; the released size is 16 blocks of width 768."""

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__(config, step_index=True)
        self.learned = nn.Parameter(0.02 * torch.randn(LEARNED_TOKENS, config.width))
        self.blocks = nn.ModuleList(DiTBlock(config, cross=i % 2 == 0) for i in range(config.depth))

    @property
    def needed_layers(self) -> tuple[int, ...]:
        """The last layer, before the VLM's final norm (the cross-attention has a norm of its own)."""
        return (self.config.vlm.layers - 1,)

    def encode_context(
        self, features: VLFeatures, robot: RobotState, rotation: Tensor | None = None
    ) -> Context:
        """Compute the keys and values of all cross-attentions."""
        world, robot = robot, robot.recentred(rotation)
        prefix = self.tokens.prefix(robot, world)
        types = self._action_types(robot, prefix.shape[2] + self.config.horizon)
        own = torch.cat([torch.full_like(types[:, :1], ACTION).expand(-1, LEARNED_TOKENS), types], 1)
        cross = attention_bias(attention_mask(own, features.token_type, isolated=self.config.stage == 1))
        among = attention_bias(attention_mask(own, own, isolated=False))
        seen = features.tap(self.needed_layers[0]).to(self.head.weight.dtype)
        memory = tuple(
            Memory(cross, None, block.attn.keys_and_values(seen))
            if isinstance(block.attn, CrossAttention)
            else Memory(among)
            for block in self.blocks
        )
        return Context(robot, prefix, memory)

    def decode(self, context: Context, x: Tensor, step: Step) -> Tensor:
        """Put the learned tokens before x, run all blocks, and remove them."""
        x = torch.cat([self.learned.expand(len(x), -1, -1), x], 1)
        return super().decode(context, x, step)[:, LEARNED_TOKENS:]
