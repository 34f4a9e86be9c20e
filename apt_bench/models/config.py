"""Sizes and switches of an action expert. Everything that decides its shape is here and travels in `config.json`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from apt_bench.core.errors import UserError, did_you_mean


@dataclass(frozen=True)
class VLMShape:
    """The geometry of a vision-language model's decoder. The default is Qwen3-VL-2B."""

    width: int = 2048
    layers: int = 28
    kv_heads: int = 8
    head_dim: int = 128
    rope_theta: float | None = 5e6  # None: no rotary code

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
    stage: int = 2
    vlm: VLMShape = field(default_factory=VLMShape)
    width: int = 768
    heads: int = 12
    depth: int = 10
    horizon: int = 32
    max_arms: int = 4
    fusion: Literal["convex", "additive"] = "convex"
    insertion: Literal["before", "after", "tokens"] = "before"
    taps: tuple[int, ...] = ()
    proprio: bool = False
    step_index: bool = False
    prediction: Literal["noise", "sample"] = "noise"
    position_scale: float = 1.0
    plane: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in {
            "arch": ("apt", "pi", "groot"),
            "stage": (1, 2),
            "fusion": ("convex", "additive"),
            "insertion": ("before", "after", "tokens"),
            "prediction": ("noise", "sample"),
        }.items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"Expert config: {name} is {getattr(self, name)!r}; it must be one of "
                    f"{', '.join(map(str, allowed))}."
                )
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
    def from_dict(cls, values: dict[str, Any]) -> ExpertConfig:
        """Read from `config.json`; unknown keys are errors."""
        known = {f.name for f in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise UserError(f"Expert config: unknown key '{key}'. {did_you_mean(key, known)}")
        vlm = values.get("vlm", {})
        vlm = vlm if isinstance(vlm, VLMShape) else VLMShape(**vlm)
        return cls(**{**values, "vlm": vlm, "taps": tuple(values.get("taps", ()))})
