"""The base class of all action experts: action tokens, loss and sampler.

An expert works in two steps. `encode_context` encodes vision, language and robot state into a `Context`, once per
decision. `denoise` uses that context in every denoising step. Training uses the same two steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from apt_bench.models.action_codes import CODE_DIM, POSITION, encode_chunk, standstill
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
from apt_bench.models.inputs import ACTION, PAD, RobotState, VLFeatures, plane_heights


@dataclass(frozen=True)
class Memory:
    """Inputs of one block besides the action tokens."""

    mask: Tensor  # (B, A, keys), see `attention_bias`
    code: PositionCode | Callable[[Tensor], Tensor] | None = None  # of the action tokens
    past: KV | None = None  # keys and values of other tokens


@dataclass(frozen=True)
class Context:
    """The encoded inputs of a decision, used in every denoising step."""

    robot: RobotState
    prefix: Tensor  # (B, E, P, width): the tokens before the noisy actions
    memory: tuple[Memory, ...]  # one per block


class ActionTokens(nn.Module):
    """Encodes an arm's state and its noisy action chunk as tokens: per arm [history, (proprio), T actions].

    Every token also encodes the position that its action gives the end effector in the reference camera's frame. In the
    released form this position and the arm's embedding are all that the network gets about the robot.
    """

    def __init__(self, config: ExpertConfig, step_index: bool) -> None:
        super().__init__()
        width = config.width
        self.position_scale, self.planes = config.position_scale, config.planes or (0.0,)
        self.history_encoder = small_mlp(CODE_DIM - 1, width)
        self.action_encoder = small_mlp(CODE_DIM, width)
        self.position_encoder = small_mlp(3, width)
        last = self.position_encoder[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        self.arm_embed = nn.Parameter(0.02 * torch.randn(1, config.max_arms, 1, width))
        self.proprio_encoder = small_mlp(CODE_DIM, width) if config.proprio else None
        self.step_embed = nn.Parameter(0.02 * torch.randn(config.horizon, width)) if step_index else None

    def _placed(self, tokens: Tensor, shift: Tensor, robot: RobotState) -> Tensor:
        """Add to the tokens where a shift of the end effector, (..., 3) in metres, takes it."""
        position = robot.ee_in_camera + shift
        return tokens + self.position_encoder(position) + self.arm_embed[:, : tokens.shape[1]]

    def prefix(self, robot: RobotState, world: RobotState) -> Tensor:
        """The tokens before the actions, (B, E, P, width): history, and proprioception if the config has it.

        The history has length 1: the code of the current pose without its gripper number.

        world: the same state in the robot's own world frame, z upwards."""
        code = standstill(robot.openness)[:, :, None]
        shift = code[..., POSITION]
        tokens = self._placed(self.history_encoder(code[..., :-1]), shift, robot)
        if self.proprio_encoder is None:
            return tokens
        # Pose and gripper, encoded like an action that moves the end effector there from the world's origin.
        ee_world = world.ee_pose
        origin = torch.eye(4, dtype=ee_world.dtype, device=ee_world.device).repeat(*ee_world.shape[:2], 1, 1)
        origin[..., 2, 3] = plane_heights(self.planes, world)[:, None]
        here = encode_chunk(ee_world[:, :, None], robot.openness[..., None], origin, origin)
        here = scaled(here, self.position_scale).to(code.dtype)
        return torch.cat([tokens, self._placed(self.proprio_encoder(here), shift, robot)], 2)

    def steps(self, noisy: Tensor, robot: RobotState) -> Tensor:
        """Noisy codes (B, E, T, 10), positions in metres * position_scale -> tokens (B, E, T, width)."""
        shift = noisy[..., POSITION] * (1 / self.position_scale)
        tokens = self._placed(self.action_encoder(noisy), shift, robot)
        return tokens if self.step_embed is None else tokens + self.step_embed[: noisy.shape[2]]


class ActionExpert(nn.Module, ABC):
    """Denoises action chunks, conditioned on vision, language and robot state."""

    needs_kv = False  # whether VLFeatures must contain the VLM's keys and values

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
        """Index of the Stage-1 block that each block inherits from; None for new blocks (APT only)."""
        return tuple(range(len(self.blocks)))

    def make_new_blocks_identity(self) -> None:
        """Make blocks that inherit nothing start as the identity."""

    @property
    @abstractmethod
    def needed_layers(self) -> tuple[int, ...]:
        """Indices of the VLM layers whose outputs this expert uses."""

    @abstractmethod
    def encode_context(
        self, features: VLFeatures, robot: RobotState, rotation: Tensor | None = None
    ) -> Context:
        """Encode vision, language and robot state, once per decision.

        Args:
            features: The VLM's features, B samples.
            robot: Cameras and arms, B samples.
            rotation: Rotations of the world frame, (B, 3, 3), for augmentation in training.
        """

    def decode(self, context: Context, x: Tensor, step: Step) -> Tensor:
        """Run action tokens x (B, A, width) through all blocks."""
        for block, memory in zip(self.blocks, context.memory, strict=True):
            x, _ = block(x, memory.code, memory.mask, step, memory.past)
        return x

    def predict(self, context: Context, noisy: Tensor, t: Tensor, step: Step | None = None) -> Tensor:
        """Predict the noise, or the clean codes if `config.prediction` is `sample`.

        Args:
            context: The encoded inputs of the decision.
            noisy: Noisy codes, (B, E, T, 10).
            t: Diffusion steps, (B,).
            step: The embedding of `t`, if it is already computed.

        Returns:
            The prediction, (B, E, T, 10), float32.
        """
        _, E, T, _ = noisy.shape
        x = torch.cat([context.prefix, self.tokens.steps(noisy, context.robot)], 2)
        x = self.decode(context, x.flatten(1, 2), step or Step(self.step(t)))
        x = x.unflatten(1, (E, -1))[:, :, -T:]
        return self.head(self.final_norm(x)).float()

    def denoise(self, context: Context, noisy: Tensor, t: Tensor, step: Step | None = None) -> Tensor:
        """Predict the noise, (B, E, T, 10), whatever the network itself predicts; arguments as in `predict`."""
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
        """Compute the denoising losses.

        Args:
            features: The VLM's features, B samples.
            robot: Cameras and arms, B samples.
            target: Codes of the demonstrated action chunks, (B, E, T, 10).
            noise: The noise, (B, E, T, 10). By default it is drawn on the CPU.
            t: Diffusion steps, (B,). By default they are drawn on the CPU.
            rotation: Rotations of the world frame, (B, 3, 3).
            generator: Random generator for the draws.
            draws: Number of (noise, t) per sample to average over. The context is encoded once for all of them.

        Returns:
            The losses by name; see `code_losses`.
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
        self,
        features: VLFeatures,
        robot: RobotState,
        noise: Tensor,
        steps: int = SAMPLE_STEPS,
        *,
        encode_context: Callable[[VLFeatures, RobotState], Context] | None = None,
        denoise: Callable[[Context, Tensor, Tensor, Step], Tensor] | None = None,
    ) -> Tensor:
        """Sample action codes. All that does not depend on the noise is computed once.

        Args:
            features: The VLM's features, B samples.
            robot: Cameras and arms, B samples.
            noise: Gaussian noise, (B, E, T, 10).
            steps: Number of denoising steps.
            encode_context: The method of this name, traced.
            denoise: The method of this name, traced.

        Returns:
            Codes, (B, E, T, 10), positions in metres.
        """
        predict_noise = denoise or self.denoise
        context = (encode_context or self.encode_context)(features, robot)
        schedule = ddim_timesteps(steps)
        embeddings = self.step(torch.tensor(schedule, device=noise.device))
        tabulated = dict(zip(schedule, TabulatedStep.tabulate(self, embeddings), strict=True))

        def at(x: Tensor, t: int) -> Tensor:
            return predict_noise(context, x, torch.full((len(x),), t, device=x.device), tabulated[t])

        return scaled(ddim_sample(at, noise, steps), 1 / self.config.position_scale)

    def _action_types(self, robot: RobotState, length: int) -> Tensor:
        """Types (B, E * length) of the action tokens. Tokens of an absent arm are padding."""
        types = torch.where(robot.arm_valid, ACTION, PAD)
        return types[..., None].expand(*types.shape, length).flatten(1)

    def _action_index(self, arms: int, prefix: int, horizon: int, device: torch.device) -> Tensor:
        """(E * (prefix + T),): 0 for the tokens before the chunk, then 1 ... T; the same for every arm."""
        one = torch.cat([torch.zeros(prefix, dtype=torch.long), torch.arange(1, horizon + 1)])
        return one.repeat(arms).to(device)


def scaled(code: Tensor, factor: float) -> Tensor:
    """Multiply the positions of codes (..., 10) by a factor."""
    if factor == 1:
        return code
    return torch.cat([code[..., POSITION] * factor, code[..., POSITION.stop :]], -1)


def inherit(
    prior: ActionExpert,
    policy: ActionExpert,
    what: Literal["all", "blocks"] = "all",
    new_blocks: Literal["random", "identity"] = "random",
) -> list[str]:
    """Initialise Stage 2 from Stage 1.

    Args:
        prior: The Stage-1 expert.
        policy: The Stage-2 expert; it is changed in place.
        what: `blocks` copies only the transformer blocks, as the released loader does by mistake. `all` copies every
            parameter that exists in both.
        new_blocks: `random` (released) keeps the random initialisation of the new blocks. `identity` makes them start
            as the identity: their outputs are zero, and the fusion after them keeps most of the stream (`NEW_GATE`), so
            that the policy starts close to the prior.

    Returns:
        The names of the parameters that were copied, sorted.
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
    """Whether the released optimiser applies weight decay to this parameter of an expert.

    It does not decay biases and parameters with `norm` in their names, which include the step modulation. It decays
    gates, embeddings and the LayerNorm weights of the small MLPs."""
    return not (name.endswith(".bias") or "norm" in name)
