"""The APT action expert (arXiv 2606.12366): a diffusion transformer with its own stream of vision-language tokens.

Stage 1 is a prior over actions given vision only. It has N/2 blocks in which vision and action tokens do not attend to
language. Stage 2 adds one new block, with the full mask, beside each of them. The defaults are those of the released
code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from apt_bench.models.action_expert import ActionExpert, Context, Memory
from apt_bench.models.attention import (
    Block,
    PositionCode,
    PRoPE,
    RoPE,
    attention_bias,
    attention_mask,
    visual_positions,
)
from apt_bench.models.config import ExpertConfig
from apt_bench.models.fusion import LayerwiseFusion
from apt_bench.models.inputs import RobotState, VLFeatures, image_plane, plane_heights, plane_points

NEW_GATE = 2.0
"""Initial fusion gate after a new block that starts as the identity: sigmoid(2) = 0.88 of the stream is kept."""


@dataclass(frozen=True)
class BlockPlan:
    """One block: the index of the tap fused after it, its position code and mask, and its Stage-1 block."""

    tap: int
    code: Literal["prope", "rope"]
    isolated: bool
    source: int | None


def plan_blocks(config: ExpertConfig) -> tuple[BlockPlan, ...]:
    """The blocks of a stage, in order. A Stage-1 block uses the same tap in both stages."""
    half = range(config.depth // 2)
    place = 0 if config.insertion == "after" else 1
    inherited = [BlockPlan(2 * i + place, "prope", True, i) for i in half]
    if config.stage == 1:
        return tuple(inherited)
    if config.insertion == "tokens":
        return tuple(BlockPlan(p.tap, p.code, False, p.source) for p in inherited)
    new = [BlockPlan(2 * i + 1 - place, "rope", False, None) for i in half]
    return tuple(sorted(inherited + new, key=lambda plan: plan.tap))


class APTExpert(ActionExpert):
    """A joint stream [VL tokens | action tokens], with layer-wise gated fusion of VLM features into its VL part."""

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__(config, config.step_index)
        self.plan = plan_blocks(config)
        self.taps = config.taps or config.vlm.evenly(config.depth)
        self.embed = nn.Linear(config.vlm.width, config.width)
        self.ray_embed = nn.Linear(2, config.width)
        nn.init.zeros_(self.ray_embed.weight)
        nn.init.zeros_(self.ray_embed.bias)
        self.plane_embed = nn.Linear(3, config.width) if config.plane is not None else None
        self.fusion = LayerwiseFusion(config.depth, config.vlm.width, config.width, config.fusion)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in self.plan)

    @property
    def sources(self) -> tuple[int | None, ...]:
        """Index of the Stage-1 block that each block inherits from; None for new blocks."""
        return tuple(plan.source for plan in self.plan)

    @torch.no_grad()
    def make_new_blocks_identity(self) -> None:
        """Make the new blocks the identity; see `inherit`."""
        for block, plan in zip(self.blocks, self.plan, strict=True):
            if plan.source is None:
                assert isinstance(block, Block)
                block.make_identity()
                if self.config.fusion == "convex":
                    self.fusion.gate[plan.tap] = NEW_GATE

    @property
    def needed_layers(self) -> tuple[int, ...]:
        """The taps of all blocks but the last one, since nothing uses the VL stream after it."""
        return tuple(dict.fromkeys(self.taps[plan.tap] for plan in self.plan[:-1]))

    def vl_stream(self, features: VLFeatures, robot: RobotState) -> Tensor:
        """The VL part of the stream before the first block, (B, L, width)."""
        x = self.embed(features.embeds.to(self.embed.weight.dtype))
        x = x + self.ray_embed(image_plane(features, robot)) * features.is_visual[..., None]
        if self.plane_embed is None:
            return x
        heights = plane_heights(self.config.planes, robot)
        points = plane_points(features, robot, heights) * self.config.position_scale
        return x + self.plane_embed(points) * features.is_visual[..., None]

    def encode_context(
        self, features: VLFeatures, robot: RobotState, rotation: Tensor | None = None
    ) -> Context:
        """Run the VL part of the stream and keep each block's keys and values for the action tokens."""
        x = self.vl_stream(features, robot)
        world, robot = robot, robot.recentred(rotation)
        prefix = self.tokens.prefix(robot, world)
        arms, per_arm = prefix.shape[1], prefix.shape[2] + self.config.horizon
        types = self._action_types(robot, per_arm)
        pose, action_pose = token_poses(features, robot, per_arm)
        position = visual_positions(features.is_visual)
        index = self._action_index(arms, prefix.shape[2], self.config.horizon, position.device)
        action_position = position[:, -1:] + 1 + index
        head_dim = self.config.head_dim
        vl_codes: dict[str, PositionCode] = {"prope": PRoPE(pose), "rope": RoPE(position, head_dim)}
        action_codes: dict[str, PositionCode] = {
            "prope": PRoPE(action_pose),
            "rope": RoPE(action_position, head_dim),
        }

        everyone = torch.cat([features.token_type, types], 1)
        vl_masks = _masks(features.token_type, features.token_type)
        action_masks = _masks(types, everyone)

        memory = []
        for block, plan in zip(self.blocks, self.plan, strict=True):
            last = plan is self.plan[-1]
            x, kv = block(x, vl_codes[plan.code], vl_masks[plan.isolated], kv_only=last)
            memory.append(Memory(action_masks[plan.isolated], action_codes[plan.code], kv))
            if not last:
                x = self.fusion(x, features.tap(self.taps[plan.tap]), plan.tap)
        return Context(robot, prefix, tuple(memory))


def _masks(query: Tensor, key: Tensor) -> dict[bool, Tensor]:
    """The masks of both kinds of blocks, by `isolated`, from the types of queries (B, Q) and keys (B, K)."""
    return {isolated: attention_bias(attention_mask(query, key, isolated)) for isolated in (False, True)}


def token_poses(features: VLFeatures, robot: RobotState, per_arm: int) -> tuple[Tensor, Tensor]:
    """Poses for PRoPE of the VL tokens, (B, L, 4, 4), and of the action tokens, (B, E * per_arm, 4, 4).

    A visual token has the pose of its camera, an action token that of its arm's reference camera, any other token the
    identity."""
    batch = torch.arange(len(features.view), device=features.view.device)[:, None]
    camera = robot.camera_pose[batch, features.view.clamp(min=0)]
    identity = torch.eye(4, device=camera.device, dtype=camera.dtype)
    vl = torch.where(features.is_visual[..., None, None], camera, identity)
    return vl, robot.ref_pose.repeat_interleave(per_arm, 1)
