"""Sizes and switches of an action expert. Everything that decides its shape is here and travels in `config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import torch
from torch import nn

from apt_bench.core.config import Positive, Range, build, check_fields
from apt_bench.core.errors import UserError

Width = Annotated[int, Range(least=8, most=16_384)]
Layers = Annotated[int, Range(least=1, most=256)]
Heads = Annotated[int, Range(least=1, most=256)]
"""Sizes that no network of ours exceeds. They bound the modules that are made before `sketch` counts parameters."""

PARAMETERS = 4 * 10**9
"""Parameters of an expert, or of a mini VLM, at most: 16 GB."""

Module = TypeVar("Module", bound=nn.Module)


def on_meta_device(make: Callable[[], Module], what: str) -> Module:
    """The network that `make` makes, without memory for its parameters (on the meta device).

    what: for the message. Raises UserError where it has more than `PARAMETERS`."""
    with torch.device("meta"):
        network = make()
    count = sum(p.numel() for p in network.parameters())
    if count > PARAMETERS:
        raise UserError(
            f"{what} would have {count / 1e9:.1f} thousand million parameters; at most "
            f"{PARAMETERS / 1e9:g} are built. Choose smaller sizes."
        )
    return network


@dataclass(frozen=True)
class VLMShape:
    """The geometry of a vision-language model's decoder. The default is Qwen3-VL-2B."""

    width: Annotated[int, Range(least=1, most=65_536)] = 2048
    layers: Layers = 28
    kv_heads: Heads = 8
    head_dim: Annotated[int, Range(least=2, most=4096)] = 128
    rope_theta: Positive | None = 5e6  # None: no rotary code

    def __post_init__(self) -> None:
        check_fields(self, "VLM shape")

    def evenly(self, count: int) -> tuple[int, ...]:
        """`count` layers at even distance from first to last: 0, 3, ..., 27 for 10 of 28."""
        if count == 1:
            return (self.layers - 1,)
        step = (self.layers - 1) / (count - 1)
        return tuple(round(i * step) for i in range(count))


@dataclass(frozen=True)
class ExpertConfig:
    """An action expert. The defaults are the released APT, Stage 2, on Qwen3-VL-2B.

    - arch: `apt`, or the rivals `pi` and `groot`, which share every input and output with it.
    - stage: 1 = language-blind prior, 2 = language-conditioned policy.
    - depth: N, the blocks of Stage 2 and the tapped VLM layers (paper: 20); even. For the rivals the number of
      blocks, which for `pi` is that of the VLM's layers.
    - fusion: `convex` (released) or `additive` (paper's equation 3).
    - insertion: where Stage 2 puts its new blocks: `before` their partner (released), `after` it (paper), or
      `tokens`: no new blocks, language is un-masked in the old ones (the paper's ablation).
    - taps: the VLM layer fused behind each block; () = `depth` layers evenly from first to last (released). The new
      blocks of a small expert on a small VLM would else read words before the VLM has found what they mean.
    - proprio: an extra token with end-effector pose in the world and gripper opening (paper, which does not say in
      which frame); the released form has none.
    - step_index: a learned embedding of each step's index in the chunk. The released Stage 1 has nothing that tells
      one step from another (its blocks have no RoPE), so it can only learn what all steps have in common.
    - prediction: what the network answers, and where its L1 loss is taken: the `noise` (released) or the clean
      `sample`, which learns small data far faster.
    - position_scale: what positions (m) are multiplied with inside the network, the loss and the noise. At 1
      (released) centimetres drown in unit noise, and the gripper's number outweighs them in the loss.
    - plane: height (m, world z) of the plane that visual tokens lie on, roughly that of the things on a table; the
      proprio token counts heights from there. Each token is told where its ray meets the plane, seen from the end
      effector in the reference camera's axes: where an action would have to go to reach what is seen there. None
      (released): depth must be learned.
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
    plane: Annotated[float, Range(least=-1e3, most=1e3)] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "Expert config")
        if self.width % (8 * self.heads):
            raise UserError(
                f"Expert config: width {self.width} with {self.heads} heads; width / heads must be a multiple of 8."
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
    def head_dim(self) -> int:
        """Channels per head."""
        return self.width // self.heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "Expert config") -> ExpertConfig:
        """Read from plain values, those of `config.json` for one; `where` begins the message about a bad one."""
        config: ExpertConfig = build(cls, values, where)
        return config
