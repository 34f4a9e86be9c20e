"""What a policy declares about itself, and the two methods that every policy has."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, Protocol

import numpy as np

from apt_bench.core.config import Arguments, Range, build, check_fields
from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line
from apt_bench.envs.base import Observation
from apt_bench.suites import EpisodeSpec

Steps = Annotated[int, Range(least=1, most=100_000)]
"""A number of control steps in one action chunk."""


def _check(value: Resources | Provenance | Interface | PolicySpec, where: str) -> None:
    """Turn numpy scalars into Python numbers and check every field. Raises UserError."""
    for one in fields(value):
        given = getattr(value, one.name)
        if isinstance(given, np.generic):
            object.__setattr__(value, one.name, given.item())
    check_fields(value, where)


@dataclass(frozen=True)
class Resources:
    """Where a policy runs and how many observations one call of `act` may get.

    Args:
        placement: "actor": one process of its own for each `num_gpus`, which answers all rollout workers in batches.
            "worker": a copy in every rollout worker, for a policy that needs little memory and time.
        num_gpus: GPUs of one actor; a fraction shares a GPU.
        max_batch: Observations in one call of `act`, at most.

    Raises:
        UserError: A value is outside its range or of another type.
    """

    placement: Literal["worker", "actor"] = "actor"
    num_gpus: Annotated[float, Range(least=0, most=1024)] = 0.0
    max_batch: Annotated[int, Range(least=1, most=10**6)] = 16

    def __post_init__(self) -> None:
        _check(self, "Resources")


@dataclass(frozen=True)
class Provenance:
    """Where the weights of a policy come from.

    Args:
        weights: Path or name of the weights; None where there are none.
        weights_sha256: Hash of the weights. With it, two runs of the same weights count as runs of one policy wherever
            the files are.
        about: What reports print about the training (`models.checkpoint.about`). It must fit into JSON.

    Raises:
        UserError: A value is of another type, or `about` does not fit into JSON.
    """

    weights: str | None = None
    weights_sha256: str | None = None
    about: Arguments = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self, "Provenance")


@dataclass(frozen=True)
class Interface:
    """What a policy of another project gets, and how its answers become actions. Clients of servers use these values.

    Args:
        state: "position_axis_angle_fingers": the 8 numbers of `Observation.state`. "none": no state.
        gripper: Gripper number of an answer. "environment": -1 opens, +1 closes. "inverted": +1 opens, -1 closes.
            "unit_open": above 0.5 opens, else it closes.
        image_size: Height and width of the images, pixels; None = as rendered.
        resize: What happens to a rendered image, see `preprocessing.prepared`.
        chunking: "client": `execute` actions of each answer are executed. "server": the server keeps the chunk and
            answers one action per observation.

    Raises:
        UserError: A value is none of these.
    """

    state: Literal["position_axis_angle_fingers", "none"] = "position_axis_angle_fingers"
    gripper: Literal["environment", "inverted", "unit_open"] = "environment"
    image_size: tuple[int, int] | None = None
    resize: Literal["none", "bilinear", "bilinear_pad", "jpeg_lanczos", "jpeg_lanczos_crop"] = "none"
    chunking: Literal["client", "server"] = "client"

    def __post_init__(self) -> None:
        _check(self, "Interface")


@dataclass(frozen=True)
class PolicySpec:
    """What a policy declares: what its observations contain and what its chunks mean.

    `cameras` and `execute` may change a score, so they are part of the protocol. The whole spec is recorded in
    `run.json`.

    Args:
        name: One line for reports, at most 100 characters. A policy that the command line names (`--policy apt_mini`)
            is reported under that name instead.
        cameras: Names of the cameras whose images the policy needs. No other image is rendered.
            `agentview_depth` requests the depth image of `agentview` (`Observation.depths`).
        horizon: Actions in one chunk, at most.
        execute: Execute horizon: actions of a chunk that are executed before the next decision.
        actions: "delta" or "pose": what a row of a chunk is, see `Policy.act`.
        privileged: Whether the policy reads the simulator's state (`Observation.scene`). Such a policy must run in the
            rollout worker: `Resources(placement="worker")`.
        resources: Where the policy runs.
        provenance: Where its weights come from.
        interface: What a policy of another project gets; None for other policies.

    Raises:
        UserError: A value is outside its range or of another type.
    """

    name: str
    cameras: tuple[str, ...] = ()
    horizon: Steps = 10
    execute: Steps = 10
    actions: Literal["delta", "pose"] = "delta"
    privileged: bool = False
    resources: Resources = Resources()
    provenance: Provenance = field(default_factory=Provenance)
    interface: Interface | None = None

    def __post_init__(self) -> None:
        where = f"PolicySpec '{one_line(self.name, 100)}'"
        if not isinstance(self.name, str) or not self.name.strip() or one_line(self.name, 100) != self.name:
            raise UserError(f"{where}: name must be one line of text, at most 100 characters.")
        if not isinstance(self.cameras, tuple | list):
            raise UserError(f"{where}: cameras is {self.cameras!r}; it must be a tuple of names.")
        object.__setattr__(self, "cameras", tuple(self.cameras))
        for part, kind in PARTS.items():
            if not isinstance(getattr(self, part), kind):
                raise UserError(f"{where}: {part} is {getattr(self, part)!r}; it must be a {kind.__name__}.")
        _check(self, where)
        if len(set(self.cameras)) < len(self.cameras):
            raise UserError(f"{where}: cameras repeats a name: {', '.join(self.cameras)}.")

    def to_record(self) -> dict[str, Any]:
        """The spec as `run.json` stores it: the fields of `resources` and `provenance` are on the first level, at the
        end; `interface` is a mapping, and is left out where there is none."""
        record = asdict(self)
        if self.interface is None:
            del record["interface"]
        for part in PARTS:
            record |= record.pop(part)
        return record

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> PolicySpec:
        """Read what `to_record` wrote, in this or an older version. Entries of other names are ignored.

        Raises:
            UserError: The name is missing, or a value is outside its range or of another type.
        """
        nested = _known(PolicySpec, record, PARTS)
        for part, kind in PARTS.items():
            nested[part] = _known(kind, record)
        if isinstance(interface := nested.get("interface"), Mapping):
            nested["interface"] = _known(Interface, interface)
        spec: PolicySpec = build(PolicySpec, nested, "policy")
        return spec


def _known(kind: type, record: Mapping[str, Any], without: Container[str] = ()) -> dict[str, Any]:
    """The entries of a record that are fields of this dataclass."""
    names = [f.name for f in fields(kind) if f.name not in without]
    return {name: record[name] for name in names if name in record}


PARTS: dict[str, type[Resources] | type[Provenance]] = {"resources": Resources, "provenance": Provenance}
"""Fields of a PolicySpec that are not part of the interface."""


def noise_seed(observation: Observation, *own: object) -> int:
    """A seed of 63 bits for the noise of one decision.

    It depends on the scene, the initial state, the seed and the control step, and on nothing else: not on the cell, the
    instruction, the batch or the order of episodes. A language probe therefore changes the instruction alone.

    Args:
        observation: The observation of the decision.
        *own: What else the noise depends on, such as a seed of the policy's own.

    Returns:
        A whole number from 0 to 2**63 - 1.
    """
    words = "/".join(map(str, (observation.noise_key, observation.step, *own)))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1


class Policy(Protocol):
    """A policy is any class with `spec`, `reset` and `act`: `--policy my_module:MyPolicy`.

    A policy may also have `finish(episode, outcome)`, which is called when an episode has ended (`envs.base.Outcome`),
    and `notes(episode)`, which is called after it and returns a mapping for the episode's record (server latency,
    tokens, turns). An exception of these two is noted in the record and does not change the episode's outcome. A class
    whose `spec` exists only after loading may have a class method `resources(**args)`, which a run needs earlier.

    Errors: raise `core.errors.ServerLost` where the policy's server does not answer. The episode is then missing data
    and is run again. The exceptions of common client libraries count as such, see `policies/servers.py`. Raise
    `core.errors.UserError` for an observation or an argument that the user must change; it stops the run. Every other
    exception counts as a failure of the policy.
    """

    @property
    def spec(self) -> PolicySpec:
        """What the policy declares; usually a plain attribute of the class."""
        ...

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Start these episodes: forget what was kept for them.

        Args:
            episodes: The episodes, each with `id` (as in `Observation.episode`), `prompt` (the instruction), and `key`
                (suite, cell, task, index of the initial state, seed).
        """
        ...

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """Choose the next action chunk for each observation.

        A batch must give what single calls give. Draw noise from `noise_seed`.

        Args:
            observations: One per episode, at most `spec.resources.max_batch`.

        Returns:
            One float array (n, 7) per observation, in the same order, 1 <= n <= `spec.horizon`. With `spec.actions`
            "delta", rows are actions in the convention of `envs.base.ACTION_DIM`. With "pose", rows are end-effector
            poses to steer for: position (m, world frame), rotation vector (rad), gripper as in an action. Each pose
            becomes an action just before it is executed, relative to the end effector's pose at that moment.
        """
        ...
