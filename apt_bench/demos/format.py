"""One demonstration in memory, and what training reads off it.

Row t of every array belongs to control step t: what was seen and measured just BEFORE `actions[t]` was executed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.core.config import Natural, Positive, Range, build
from apt_bench.core.errors import UserError
from apt_bench.core.files import parse_json
from apt_bench.demos.limits import MAX_HZ, MAX_STEPS, MAX_TEXT
from apt_bench.envs.base import ACTION_SCALE
from apt_bench.suites import EpisodeKey

Steps = Annotated[int, Range(least=1, most=MAX_STEPS)]
Rate = Annotated[int, Range(least=1, most=MAX_HZ)]

MAX_OPENING = 0.08
"""Metres between the Panda's fingers when open."""

NOOP_MOTION = 1e-4
"""Norm of the six motion numbers below which an action moves nothing (OpenVLA's filter of LIBERO)."""


STORED_NAMES = {"image_every": "look_every"}
"""Field -> its name in demonstration files and in digests, so that those of older versions stay valid."""


def stored_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of fields, under their stored names."""
    return {STORED_NAMES.get(name, name): value for name, value in fields.items()}


def current_names(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stored_names`."""
    current = {old: new for new, old in STORED_NAMES.items()}
    return {current.get(name, name): value for name, value in stored.items()}


@dataclass(frozen=True)
class DemoInfo:
    """What an index knows of a demonstration without reading it. `key` is None for files that others made."""

    episode: str  # EpisodeKey.id; for others' files the file and the name inside it
    steps: Steps
    instruction: str
    later: tuple[tuple[int, str], ...] = ()  # (step, sentence) of instructions given while it went on
    success: bool = True
    key: EpisodeKey | None = None
    start_hash: str = ""  # of qpos after settling
    end_hash: str = ""  # of qpos after the last action
    policy: str = ""
    # its EpisodeSpec's `env` and `args`, and `simulator` versions
    scene: Mapping[str, Any] = field(default_factory=dict)
    max_opening: Positive = MAX_OPENING
    control_hz: Rate = 20
    image_every: Steps = 1

    def to_json(self) -> str:
        """For an attribute or a column of a file."""
        return json.dumps(stored_names(asdict(self)))

    @staticmethod
    def from_json(text: str, where: str) -> DemoInfo:
        """Inverse of `to_json`. Raises UserError, beginning with `where`, for a field that cannot be meant."""
        try:
            raw = parse_json(text)
        except ValueError as error:
            raise UserError(f"{where} is not JSON: {error}.") from None
        if not isinstance(raw, dict):
            raise UserError(f"{where} is a {type(raw).__name__}; it must be an object.")
        known = {f.name for f in fields(DemoInfo)}
        raw = {k: v for k, v in current_names(raw).items() if k in known}  # a newer version may have written more
        later = _later(raw.pop("later", ()), where)
        info: DemoInfo = dataclasses.replace(build(DemoInfo, raw, where), later=later)
        return info.checked(where)

    def checked(self, where: str) -> DemoInfo:
        """The same. Raises UserError, beginning with `where`, for text or times that cannot be meant."""
        steps = [0, *(step for step, _ in self.later), self.steps]
        if any(b <= a for a, b in pairwise(steps)):
            raise UserError(f"{where}: later instructions begin at the steps {steps[1:-1]} of {self.steps}.")
        if self.key:
            build(Natural, self.key.init, f"{where}: key: init")
            build(Natural, self.key.seed, f"{where}: key: seed")
        for sentence in (self.instruction, *(sentence for _, sentence in self.later)):
            if not sentence.strip() or len(sentence) > MAX_TEXT:
                raise UserError(
                    f"{where}: an instruction has {len(sentence)} characters; 1 to {MAX_TEXT} are read."
                )
        return self


def _later(raw: Any, where: str) -> tuple[tuple[int, str], ...]:
    fits = isinstance(raw, (list, tuple)) and all(
        isinstance(x, (list, tuple)) and [type(v) for v in x] == [int, str] for x in raw
    )
    if not fits:
        raise UserError(f"{where}: later must be a list of pairs of a step and a sentence.")
    return tuple((step, sentence) for step, sentence in raw)


@dataclass(frozen=True)
class CameraTrack:
    """One camera over T steps: `K` (3, 3) in pixels of the delivered image (negative focal length along x where that is
    mirrored, as LIBERO's are); `pose` (T, 4, 4) camera (OpenCV axes) to world, metres."""

    K: np.ndarray
    pose: np.ndarray


@dataclass(frozen=True)
class Demonstration:
    """T control steps of one episode.

    images: uint8 (T, H, W, 3), upright RGB by camera name, as a policy gets them. state: float32 (T, 8), see
    `Observation.state`. actions: float64 (T, 7) as executed. joints: (T, n) arm joints, rad. sim_states: (T, 1 + nq +
    nv) time, qpos, qvel. segmentation: uint8 (T, H, W) by camera, 0 = background, i = `segments[i - 1]`.
    """

    info: DemoInfo
    images: Mapping[str, np.ndarray]
    state: np.ndarray
    actions: np.ndarray
    cameras: Mapping[str, CameraTrack] = field(default_factory=dict)
    joints: np.ndarray | None = None
    sim_states: np.ndarray | None = None
    segmentation: Mapping[str, np.ndarray] = field(default_factory=dict)
    segments: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def instructions(self) -> list[str]:
        """The sentence in force at each step."""
        given = [(0, self.info.instruction), *self.info.later]
        ends = [step for step, _ in given[1:]] + [len(self)]
        return [
            sentence for (start, sentence), end in zip(given, ends, strict=True) for _ in range(start, end)
        ]

    @cached_property
    def achieved(self) -> np.ndarray:
        """Measured end-effector pose before each action, (T, 4, 4) to world, metres."""
        return make_poses(self.state[:, :3], Rotation.from_rotvec(self.state[:, 3:6]).as_matrix())

    @cached_property
    def commanded(self) -> np.ndarray:
        """The pose that each action asks for, (T, 4, 4): current position plus the action's, and the action's rotation
        times the current one (from the left: the delta is in world axes; robosuite OSC, `set_goal`)."""
        return commanded_poses(self.achieved, self.actions)

    @property
    def gripper_target(self) -> np.ndarray:
        """Commanded openness (T,), 1 = open, 0 = closed: (1 - a) / 2."""
        return (1 - np.clip(self.actions[:, 6], -1, 1)) / 2

    @property
    def openness(self) -> np.ndarray:
        """Measured openness (T,), 1 = open: the distance between the fingers as a fraction of the largest."""
        return np.clip((self.state[:, 6] - self.state[:, 7]) / self.info.max_opening, 0, 1)

    @cached_property
    def noop(self) -> np.ndarray:
        """bool (T,): actions that move nothing and leave the gripper's command as the last kept action had it.

        The rule by which LIBERO's `no_noops` data were filtered (openvla, `regenerate_libero_dataset.py`). It also
        marks the steps in which a closing gripper is waited for: drop marked steps only where a shorter wait is meant.
        """
        mask = np.zeros(len(self), dtype=bool)
        held: float | None = None
        for t, action in enumerate(self.actions):
            mask[t] = np.linalg.norm(action[:6]) < NOOP_MOTION and (held is None or action[6] == held)
            if not mask[t]:
                held = action[6]
        return mask


def make_poses(position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """(T, 3) and (T, 3, 3) -> float64 (T, 4, 4)."""
    pose = np.tile(np.eye(4), (len(position), 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = rotation, position
    return pose


def commanded_poses(current: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Current poses (T, 4, 4) and actions (T, 7), clipped to [-1, 1] as the controller does -> (T, 4, 4)."""
    move = np.clip(actions[:, :6], -1, 1) * ACTION_SCALE
    turn = Rotation.from_rotvec(move[:, 3:]).as_matrix()
    return make_poses(current[:, :3, 3] + move[:, :3], turn @ current[:, :3, :3])
