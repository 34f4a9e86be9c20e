"""Sizes and options of an action expert, as stored in the `config.json` of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

import torch
from torch import nn

from apt_bench.core.config import Positive, Range, check_fields
from apt_bench.core.errors import UserError

Width = Annotated[int, Range(least=8, most=16_384)]
Layers = Annotated[int, Range(least=1, most=256)]
Heads = Annotated[int, Range(least=1, most=256)]
"""Upper limits of sizes. They bound the number of modules that are made before `on_meta_device` counts parameters."""

PARAMETERS = 4 * 10**9
"""Maximum number of parameters of an expert or of a mini VLM (16 GB)."""

Module = TypeVar("Module", bound=nn.Module)


def on_meta_device(make: Callable[[], Module], what: str) -> Module:
    """Make a network on torch's meta device, which allocates no memory for its parameters.

    Args:
        make: Makes the network.
        what: Names the network in the error message.

    Raises:
        UserError: The network has more than `PARAMETERS` parameters.
    """
    with torch.device("meta"):
        network = make()
    count = sum(p.numel() for p in network.parameters())
    if count > PARAMETERS:
        raise UserError(
            f"{what} would have {count / 1e9:.1f} billion parameters; the maximum is {PARAMETERS / 1e9:g} billion. "
            "Choose smaller sizes."
        )
    return network


@dataclass(frozen=True)
class VLMShape:
    """Sizes of a vision-language model's decoder. The default is Qwen3-VL-2B."""

    width: Annotated[int, Range(least=1, most=65_536)] = 2048
    layers: Layers = 28
    kv_heads: Heads = 8
    head_dim: Annotated[int, Range(least=2, most=4096)] = 128
    rope_theta: Positive | None = 5e6  # None: no rotary position code

    def __post_init__(self) -> None:
        check_fields(self, "VLM shape")

    def evenly(self, count: int) -> tuple[int, ...]:
        """`count` evenly spaced layers from the first to the last one: 0, 3, ..., 27 for 10 of 28."""
        if count == 1:
            return (self.layers - 1,)
        step = (self.layers - 1) / (count - 1)
        return tuple(round(i * step) for i in range(count))


PlaneHeight = Annotated[float, Range(least=-1e3, most=1e3)]


@dataclass(frozen=True)
class ExpertConfig:
    """An action expert. The defaults are the released APT, Stage 2, on Qwen3-VL-2B.

    "Released" and "paper" name the source of a value: the authors' released code, or arXiv 2606.12366.

    - arch: `apt`, or one of its rivals `pi` and `groot`, which have the same inputs and outputs.
    - stage: 1 = prior without language, 2 = policy conditioned on language.
    - depth: N, the number of Stage-2 blocks and of tapped VLM layers (paper: 20); even. For the rivals the number of
      blocks; for `pi` it equals the number of VLM layers.
    - fusion: `convex` (released) or `additive` (paper, equation 3).
    - insertion: where Stage 2 inserts its new blocks: `before` their Stage-1 block (released), `after` it (paper), or
      `tokens`: no new blocks, the Stage-1 blocks get the full mask (an ablation in the paper).
    - taps: the VLM layer that is fused after each block; () = `depth` evenly spaced layers from the first to the last
      (released). With a small expert on a small VLM, evenly spaced taps let the new blocks use word features from
      layers that have not yet resolved the words' meaning.
    - proprio: an extra token with the end-effector pose in the world frame and the gripper opening (paper, which does
      not name the frame). The released form has no such token.
    - step_index: a learned embedding of each action's index in the chunk. The released Stage 1 cannot distinguish the
      actions of a chunk (its blocks have no RoPE), so it learns only what they have in common.
    - prediction: what the network predicts and its L1 loss compares: the `noise` (released) or the clean `sample`,
      which learns small datasets far faster.
    - position_scale: factor on positions (m) inside the network, the loss and the noise. At 1 (released), positions of
      centimetres are small against the unit noise, and the gripper dominates the loss.
    - plane: height (m, world z) of a plane near the objects on a table; the proprio token measures heights from it.
      Each visual token gets the point where its ray meets this plane, relative to the end effector in the reference
      camera's axes, which is the position code of an action that moves there. None (released): no such input.
    - lower_planes: further heights, for scenes with lower tables. Each sample takes the highest plane that is at least
      0.4 m below its highest camera.
    """

    arch: Literal["apt", "pi", "groot"] = "apt"
    stage: Annotated[int, Range(least=1, most=2)] = 2
    vlm: VLMShape = field(default_factory=VLMShape)
    width: Width = 768
    heads: Heads = 12
    depth: Layers = 10
    horizon: Annotated[int, Range(least=1, most=1024)] = 32
    max_arms: Annotated[int, Range(least=1, most=64)] = 4
    fusion: Literal["convex", "additive"] = "convex"
    insertion: Literal["before", "after", "tokens"] = "before"
    taps: tuple[int, ...] = ()
    proprio: bool = False
    step_index: bool = False
    prediction: Literal["noise", "sample"] = "noise"
    position_scale: Annotated[float, Range(above=0, most=1e6)] = 1.0
    plane: PlaneHeight | None = None
    lower_planes: tuple[PlaneHeight, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, "Expert config")
        if self.width % (8 * self.heads):
            raise UserError(
                f"Expert config: width {self.width} with {self.heads} heads; width / heads must be a multiple of 8."
            )
        if self.lower_planes and (self.plane is None or max(self.lower_planes) >= self.plane):
            raise UserError(
                f"Expert config: lower_planes are {list(self.lower_planes)} and plane is {self.plane}; give plane the "
                "greatest height."
            )
        if self.arch == "apt" and self.depth % 2:
            raise UserError(
                f"Expert config: depth {self.depth}; it must be even, as Stage 1 has half the blocks."
            )
        if self.taps and (len(self.taps) != self.depth or not set(self.taps) <= set(range(self.vlm.layers))):
            raise UserError(
                f"Expert config: taps {list(self.taps)}; there must be {self.depth}, one per block of Stage 2, each "
                f"from 0 to {self.vlm.layers - 1}."
            )
        if self.arch == "pi" and self.vlm.head_dim % 2:
            raise UserError(
                f"Expert config: the VLM's heads have {self.vlm.head_dim} channels; pi needs an even number."
            )
        if self.arch == "pi" and self.depth != self.vlm.layers:
            raise UserError(
                f"Expert config: depth {self.depth}; the "
                f"pi-style expert has one block per VLM layer, {self.vlm.layers}."
            )

    @property
    def planes(self) -> tuple[float, ...]:
        """Heights of all planes, ascending; () = none."""
        return () if self.plane is None else (*sorted(self.lower_planes), self.plane)

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.width // self.heads
