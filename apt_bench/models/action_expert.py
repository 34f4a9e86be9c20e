"""What every architecture shares: how actions become tokens, the loss, and the sampler.

An expert answers in two steps. `observe` digests vision, language and robot state into a `Context`, once per decision.
`denoise` reads that context in every denoising step. Training uses the same two steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from apt_bench.models.action_codes import CODE_DIM, POSITION, camera_position, encode_chunk, standstill
from apt_bench.models.attention import (
    KV,
    PositionCode,
    RMSNorm,
    Step,
    StepEmbedding,
    TabulatedStep,
    small_mlp,
)
from apt_bench.models.config import ExpertConfig
from apt_bench.models.diffusion import (
    SAMPLE_STEPS,
    TRAIN_STEPS,
    add_noise,
    code_losses,
    ddim_sample,
    ddim_timesteps,
    implied_noise,
)
from apt_bench.models.inputs import ACTION, PAD, RobotState, VLFeatures


@dataclass(frozen=True)
class Memory:
    """What one block's action tokens need: their position code, whom they may see, and the keys and values of
    others."""

    mask: Tensor  # (B, A, keys) bool
    code: PositionCode | None = None
    past: KV | None = None


@dataclass(frozen=True)
class Context:
    """A decision's digest, reused by every denoising step."""

    robot: RobotState
    prefix: Tensor  # (B, E, P, width): the tokens before the noisy steps
    memory: tuple[Memory, ...]  # one per block


class ActionTokens(nn.Module):
    """Encodes an arm's history and its (noisy) chunk as tokens, per arm [history, (proprio), T steps].

    Every token also says where its action puts the end effector in the reference camera's frame; together with
    the arm's embedding that is all the network knows of the robot in the released form.
    """

    def __init__(self, config: ExpertConfig, step_index: bool) -> None:
        super().__init__()
        width = config.width
        self.position_scale, self.floor = config.position_scale, config.plane or 0.0
        self.history_encoder = small_mlp(CODE_DIM - 1, width)
        self.action_encoder = small_mlp(CODE_DIM, width)
        self.position_encoder = small_mlp(3, width)
        last = self.position_encoder[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        self.arm_embed = nn.Parameter(0.02 * torch.randn(1, config.max_arms, 1, width))
        self.proprio_encoder = small_mlp(CODE_DIM, width) if config.proprio else None
        self.step_embed = nn.Parameter(0.02 * torch.randn(config.horizon, width)) if step_index else None

    def _placed(self, tokens: Tensor, code: Tensor, robot: RobotState) -> Tensor:
        position = camera_position(code, robot.ee_pose, robot.ref_pose)
        return tokens + self.position_encoder(position) + self.arm_embed[:, : tokens.shape[1]]

    def prefix(self, robot: RobotState, ee_world: Tensor) -> Tensor:
        """(B, E, P, width). History of length 1 is a constant code without its gripper number.

        ee_world: end-effector poses (B, E, 4, 4) in the world as the robot knows it, its z upwards."""
        code = standstill(robot.openness)[:, :, None]
        tokens = self._placed(self.history_encoder(code[..., :-1]), code, robot)
        if self.proprio_encoder is None:
            return tokens
        # Pose and gripper, coded like an action that would bring the hand there from the world's origin.
        origin = torch.eye(4, dtype=ee_world.dtype, device=ee_world.device).repeat(*ee_world.shape[:2], 1, 1)
        origin[..., 2, 3] = self.floor
        here = encode_chunk(ee_world[:, :, None], robot.openness[..., None], origin, origin)
        here = scaled(here, self.position_scale).to(code.dtype)
        return torch.cat([tokens, self._placed(self.proprio_encoder(here), code, robot)], 2)

    def steps(self, noisy: Tensor, robot: RobotState) -> Tensor:
        """noisy (B, E, T, 10), positions in metres * position_scale -> (B, E, T, width)."""
        tokens = self._placed(self.action_encoder(noisy), scaled(noisy, 1 / self.position_scale), robot)
        return tokens if self.step_embed is None else tokens + self.step_embed[: noisy.shape[2]]


class ActionExpert(nn.Module, ABC):
    """A denoiser of action chunks under vision, language and robot state."""

    needs_kv = False  # whether VLFeatures must carry the VLM's keys and values

    def __init__(self, config: ExpertConfig, step_index: bool) -> None:
        super().__init__()
        self.config = config
        self.tokens = ActionTokens(config, step_index)
        self.step = StepEmbedding(config.width)
        self.blocks = nn.ModuleList()
        self.final_norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, CODE_DIM)
        nn.init.zeros_(self.head.weight)

    @property
    def sources(self) -> tuple[int | None, ...]:
        """Which Stage-1 block each block inherits from; the rivals insert no new ones."""
        return tuple(range(len(self.blocks)))

    def make_new_blocks_identity(self) -> None:
        """Let blocks without a source begin as the identity."""

    @property
    @abstractmethod
    def needed_layers(self) -> tuple[int, ...]:
        """VLM layers whose outputs this expert reads."""

    @abstractmethod
    def encode_context(
        self, features: VLFeatures, robot: RobotState, rotation: Tensor | None = None
    ) -> Context:
        """Digest what is seen, read and felt. `rotation` (B, 3, 3) turns the world (training)."""

    def decode(self, context: Context, x: Tensor, step: Step) -> Tensor:
        """Action tokens x (B, A, width) through all blocks."""
        for block, memory in zip(self.blocks, context.memory, strict=True):
            x, _ = block(x, memory.code, memory.mask, step, memory.past)
        return x

    def predict(self, context: Context, noisy: Tensor, t: Tensor, step: Step | None = None) -> Tensor:
        """What the network says about codes `noisy` (B, E, T, 10) at diffusion steps `t` (B,): their noise, or the
        clean codes, as `config.prediction` has it; float32. `step`: what to make of `t`, if known already."""
        _, E, T, _ = noisy.shape
        x = torch.cat([context.prefix, self.tokens.steps(noisy, context.robot)], 2)
        x = self.decode(context, x.flatten(1, 2), step or Step(self.step(t)))
        x = x.unflatten(1, (E, -1))[:, :, -T:]
        return self.head(self.final_norm(x)).float()

    def denoise(self, context: Context, noisy: Tensor, t: Tensor, step: Step | None = None) -> Tensor:
        """Predicted noise, (B, E, T, 10)."""
        predicted = self.predict(context, noisy, t, step)
        return predicted if self.config.prediction == "noise" else implied_noise(noisy, predicted, t)

    def loss(
        self,
        features: VLFeatures,
        robot: RobotState,
        target: Tensor,
        *,
        noise: Tensor | None = None,
        t: Tensor | None = None,
        rotation: Tensor | None = None,
        generator: torch.Generator | None = None,
        draws: int = 1,
    ) -> dict[str, Tensor]:
        """Denoising losses (see `code_losses`) of target codes (B, E, T, 10); what is not given is drawn, on the CPU.

        `draws` > 1 averages over that many (noise, t) per sample; what is seen is digested only once for all of them.
        """
        context = self.encode_context(features, robot, rotation)
        target = scaled(target, self.config.position_scale)
        losses = []
        for _ in range(draws):
            eps = torch.randn(target.shape, generator=generator).to(target.device) if noise is None else noise
            at = torch.randint(TRAIN_STEPS, target.shape[:1], generator=generator) if t is None else t
            predicted = self.predict(context, add_noise(target, eps, at), at.to(target.device))
            wanted = eps if self.config.prediction == "noise" else target
            losses.append(code_losses(predicted, wanted, robot.arm_valid))
        return {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}

    @torch.no_grad()
    def sample(
        self, features: VLFeatures, robot: RobotState, noise: Tensor, steps: int = SAMPLE_STEPS
    ) -> Tensor:
        """Denoise `noise` (B, E, T, 10) into action codes. All that does not depend on the noise is computed once."""
        context = self.encode_context(features, robot)
        schedule = ddim_timesteps(steps)
        table = TabulatedStep.tabulate(self, self.step(torch.tensor(schedule, device=noise.device)))

        def denoise(x: Tensor, t: int) -> Tensor:
            at = torch.full((len(x),), t, device=x.device)
            return self.denoise(context, x, at, TabulatedStep(table, schedule.index(t)))

        return scaled(ddim_sample(denoise, noise, steps), 1 / self.config.position_scale)

    def _action_types(self, robot: RobotState, length: int) -> Tensor:
        """Types (B, E * length) of the action tokens: an absent arm's tokens count as padding."""
        types = torch.where(robot.arm_valid, ACTION, PAD)
        return types[..., None].expand(*types.shape, length).flatten(1)

    def _action_index(self, arms: int, prefix: int, horizon: int, device: torch.device) -> Tensor:
        """(E * (prefix + T),): 0 for the tokens before the chunk, then 1 ... T; the same for every arm."""
        one = torch.cat([torch.zeros(prefix, dtype=torch.long), torch.arange(1, horizon + 1)])
        return one.repeat(arms).to(device)


def scaled(code: Tensor, factor: float) -> Tensor:
    """Codes (..., 10) with their positions multiplied."""
    if factor == 1:
        return code
    return torch.cat([code[..., POSITION] * factor, code[..., POSITION.stop :]], -1)


def inherit(
    prior: ActionExpert,
    policy: ActionExpert,
    what: Literal["all", "blocks"] = "all",
    new_blocks: Literal["random", "identity"] = "random",
) -> list[str]:
    """Start Stage 2 (`policy`) from Stage 1 (`prior`); returns the names that were taken over.

    `blocks` takes only the transformer blocks, as the released loader does by mistake; `all` takes everything that
    exists in both. New blocks keep their own start (`random`, as released), or begin by doing nothing (`identity`), so
    that the policy begins as the prior: their outputs are zero, and the VLM layers that are fused behind them hardly
    count (NEW_GATE).
    """
    old, new = prior.state_dict(), policy.state_dict()
    taken: dict[str, Tensor] = {}
    for i, source in enumerate(policy.sources):
        if source is not None:
            own, theirs = f"blocks.{i}.", f"blocks.{source}."
            taken |= {own + k.removeprefix(theirs): v for k, v in old.items() if k.startswith(theirs)}
    if what == "all":
        taken |= {k: v for k, v in old.items() if k in new and not k.startswith("blocks.")}
    policy.load_state_dict({**new, **taken})
    if new_blocks == "identity":
        policy.make_new_blocks_identity()
    return sorted(taken)


def is_decayed(name: str) -> bool:
    """Whether the released optimiser decays this expert parameter: no biases, and nothing whose path says norm,
    which spares the step modulation too. Gates, embeddings and the small MLPs' LayerNorm weights are decayed."""
    return not (name.endswith(".bias") or "norm" in name)
