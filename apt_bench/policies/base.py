"""What a policy declares about itself and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from apt_bench.envs.base import Observation


@dataclass(frozen=True)
class PolicySpec:
    """How to feed a policy and how to read its answers. It goes into `run.json`, and the parts that may change a score
    (`cameras`, `execute`) into the protocol."""

    name: str
    cameras: tuple[str, ...] = ()  # what it looks at; nothing else is ever rendered
    horizon: int = 10  # actions in one chunk, at most
    execute: int = 10  # how many of them are executed before the next decision
    actions: Literal["delta", "pose"] = "delta"  # see `Policy`
    privileged: bool = False  # sees the simulator's ground truth; runs inside the rollout worker
    placement: Literal["worker", "actor"] = "actor"  # "worker": so light that each rollout worker has its own
    num_gpus: float = 0.0
    max_batch: int = 16
    weights: str | None = None  # where they come from
    weights_sha256: str | None = None
    about: Mapping[str, Any] = field(
        default_factory=dict
    )  # for the ablation's tables, see models/checkpoint.py


class Policy(Protocol):
    """Anything with these two methods can be evaluated: `--policy my_module:MyPolicy`.

    `act` answers each observation with a float array (n, 7), 1 <= n <= spec.horizon, in the convention of
    `apt_bench.envs.base.ACTION_DIM`; or, where spec.actions is "pose", end-effector poses to steer for: position (m,
    world), rotation vector (rad), gripper as before. Each is then turned into an action just before it is executed,
    against the arm's pose at that moment. A batch must give what the single calls give.
    """

    spec: PolicySpec

    def reset(self, episodes: Sequence[str]) -> None:
        """These episodes (EpisodeKey.id) begin: forget what was kept for them."""
        ...

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """One chunk per observation, in the same order."""
        ...
