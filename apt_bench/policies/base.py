"""What a policy declares about itself and what it answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, Protocol

import numpy as np

from apt_bench.core.config import Range, check_fields
from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line
from apt_bench.envs.base import Observation

Steps = Annotated[int, Range(least=1, most=100_000)]
"""Control steps of a chunk."""


@dataclass(frozen=True)
class PolicySpec:
    """How to feed a policy and how to read its answers. It goes into `run.json`, and the parts that may change a score
    (`cameras`, `execute`) into the protocol. Raises UserError for a value that cannot be meant."""

    name: str  # for people; of a shipped policy the name under which it was asked for
    cameras: tuple[str, ...] = ()  # what it looks at; nothing else is ever rendered
    horizon: Steps = 10  # actions in one chunk, at most
    execute: Steps = 10  # how many of them are executed before the next decision
    actions: Literal["delta", "pose"] = "delta"  # see `Policy`
    privileged: bool = False  # sees the simulator's ground truth; runs inside the rollout worker
    placement: Literal["worker", "actor"] = "actor"  # "worker": so light that each rollout worker has its own
    num_gpus: Annotated[float, Range(least=0, most=1024)] = 0.0
    max_batch: Annotated[int, Range(least=1, most=10**6)] = 16
    weights: str | None = None  # where they come from
    weights_sha256: str | None = None
    about: Mapping[str, Any] = field(
        default_factory=dict
    )  # for the ablation's tables, see models/checkpoint.py; JSON's types

    def __post_init__(self) -> None:
        where = f"PolicySpec '{one_line(self.name, 100)}'"
        if not isinstance(self.name, str) or not self.name.strip() or one_line(self.name, 100) != self.name:
            raise UserError(f"{where}: name must be one line of text, at most 100 characters.")
        if not isinstance(self.cameras, tuple | list):
            raise UserError(f"{where}: cameras is {self.cameras!r}; it must be a tuple of names.")
        object.__setattr__(self, "cameras", tuple(self.cameras))
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, np.generic):  # a number from an array is a number
                object.__setattr__(self, one.name, value.item())
        check_fields(self, where)
        if len(set(self.cameras)) < len(self.cameras):
            raise UserError(f"{where}: cameras names one twice: {', '.join(self.cameras)}.")
        try:
            json.dumps(dict(self.about), allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{where}: about must hold what JSON can: {error}.") from None


def noise_seed(observation: Observation, *own: object) -> int:
    """63 bits to seed the noise of one decision with: from scene, initial state, seed and step, neither cell nor
    sentence. So a language probe changes the sentence alone, and a result depends neither on batching nor on order.

    own: what else the noise depends on, such as a seed of the policy's own."""
    words = "/".join(map(str, (observation.noise_key, observation.step, *own)))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1


class Policy(Protocol):
    """Anything with these two methods can be evaluated: `--policy my_module:MyPolicy`.

    `act` answers each observation with a float array (n, 7), 1 <= n <= spec.horizon, in the convention of
    `apt_bench.envs.base.ACTION_DIM`; or, where spec.actions is "pose", end-effector poses to steer for: position (m,
    world), rotation vector (rad), gripper as before. Each is then turned into an action just before it is executed,
    against the arm's pose at that moment. A batch must give what the single calls give. Noise is drawn from
    `noise_seed`.

    Raise `core.errors.ServerLost` where a server is gone: missing data, and the episode is run again. So does the
    exception of its client, see `policies/servers.py`. Every other exception is the policy's failure.
    """

    @property
    def spec(self) -> PolicySpec:
        """Its declaration; mostly a plain attribute of the class."""
        ...

    def reset(self, episodes: Sequence[str]) -> None:
        """These episodes (EpisodeKey.id) begin: forget what was kept for them."""
        ...

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """One chunk per observation, in the same order."""
        ...
