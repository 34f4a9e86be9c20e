"""One demonstration in memory, and quantities derived from it.

Row t of every array belongs to control step t: observed and measured just BEFORE `actions[t]` was executed.
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
from apt_bench.core.files import parse_object
from apt_bench.demos.limits import MAX_HZ, MAX_STEPS, MAX_TEXT
from apt_bench.envs.base import ACTION_SCALE
from apt_bench.suites import EpisodeKey

Steps = Annotated[int, Range(least=1, most=MAX_STEPS)]
Rate = Annotated[int, Range(least=1, most=MAX_HZ)]

MAX_OPENING = 0.08
"""Metres between the Panda's fingers when open."""

NOOP_MOTION = 1e-4
"""Norm of the six motion numbers below which an action counts as a no-op (OpenVLA's filter of LIBERO)."""


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
    """Metadata of a demonstration.

    Attributes:
        episode: `EpisodeKey.id`; for files of others the file and the name inside it.
        steps: Control steps.
        instruction: The first instruction.
        later: (step, instruction) of instructions given during the episode.
        success: Whether the episode succeeded.
        key: The episode's key; None for files of others.
        start_hash: Hash of qpos after settling.
        end_hash: Hash of qpos after the last action.
        policy: Policy that acted.
        scene: `env` and `args` of the EpisodeSpec, and `simulator` versions.
        max_opening: Distance between the open fingers, in metres.
        control_hz: Control steps per second.
        image_every: Control steps from one image to the next. Steps between repeat its images and cameras.
    """

    episode: str
    steps: Steps
    instruction: str
    later: tuple[tuple[int, str], ...] = ()
    success: bool = True
    key: EpisodeKey | None = None
    start_hash: str = ""
    end_hash: str = ""
    policy: str = ""
    scene: Mapping[str, Any] = field(default_factory=dict)
    max_opening: Positive = MAX_OPENING
    control_hz: Rate = 20
    image_every: Steps = 1

    def to_json(self) -> str:
        """The metadata as JSON, for an attribute or a column of a file."""
        return json.dumps(stored_names(asdict(self)))

    @staticmethod
    def from_json(text: str, where: str) -> DemoInfo:
        """Inverse of `to_json`.

        Args:
            text: JSON.
            where: The place; begins every message.

        Raises:
            UserError: The text is not JSON, or a field is invalid.
        """
        raw = parse_object(text, where)
        known = {f.name for f in fields(DemoInfo)}
        raw = {
            k: v for k, v in current_names(raw).items() if k in known
        }  # a newer version may have written more
        later = _later(raw.pop("later", ()), where)
        info: DemoInfo = dataclasses.replace(build(DemoInfo, raw, where), later=later)
        return info.checked(where)

    def checked(self, where: str) -> DemoInfo:
        """Return self. Raises UserError, beginning with `where`, for invalid instructions or steps."""
        steps = [0, *(step for step, _ in self.later), self.steps]
        if any(b <= a for a, b in pairwise(steps)):
            raise UserError(
                f"{where}: later instructions begin at the steps {steps[1:-1]}. Steps must increase and be below "
                f"{self.steps}."
            )
        if self.key:
            build(Natural, self.key.init, f"{where}: key: init")
            build(Natural, self.key.seed, f"{where}: key: seed")
        for sentence in (self.instruction, *(sentence for _, sentence in self.later)):
            if not sentence.strip() or len(sentence) > MAX_TEXT:
                raise UserError(
                    f"{where}: an instruction has {len(sentence)} characters; it must have 1 to {MAX_TEXT}."
                )
        return self


def _later(raw: Any, where: str) -> tuple[tuple[int, str], ...]:
    fits = isinstance(raw, (list, tuple)) and all(
        isinstance(x, (list, tuple)) and [type(v) for v in x] == [int, str] for x in raw
    )
    if not fits:
        raise UserError(f"{where}: later must be a list of pairs (step, instruction).")
    return tuple((step, sentence) for step, sentence in raw)


@dataclass(frozen=True)
class CameraTrack:
    """One camera over T steps.

    Attributes:
        K: (3, 3) in pixels of the stored image. The focal length along x is negative where the image is mirrored, as
            LIBERO's are.
        pose: (T, 4, 4) Camera (OpenCV axes) to world, metres.
    """

    K: np.ndarray
    pose: np.ndarray


@dataclass(frozen=True)
class Demonstration:
    """T control steps of one episode.

    Attributes:
        info: Metadata.
        images: uint8 (T, H, W, 3) by camera name: upright RGB, as a policy receives them.
        state: float32 (T, 8), see `Observation.state`.
        actions: float64 (T, 7), as executed.
        cameras: Calibration by camera name.
        joints: (T, n) Arm joints, rad.
        sim_states: (T, 1 + nq + nv) Time, qpos, qvel.
        segmentation: uint8 (T, H, W) by camera name: 0 = background, i = `segments[i - 1]`.
        segments: Names of the segmented objects.
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
        """The instruction in force at each step."""
        given = [(0, self.info.instruction), *self.info.later]
        ends = [step for step, _ in given[1:]] + [len(self)]
        return [
            sentence for (start, sentence), end in zip(given, ends, strict=True) for _ in range(start, end)
        ]

    @cached_property
    def achieved(self) -> np.ndarray:
        """(T, 4, 4) Measured end-effector pose before each action, to world, metres."""
        return make_poses(self.state[:, :3], Rotation.from_rotvec(self.state[:, 3:6]).as_matrix())

    @cached_property
    def commanded(self) -> np.ndarray:
        """(T, 4, 4) Pose that each action commands: the current position plus the action's, and the action's rotation
        times the current one (from the left: the delta is in world axes; robosuite OSC, `set_goal`)."""
        return commanded_poses(self.achieved, self.actions)

    @property
    def gripper_target(self) -> np.ndarray:
        """(T,) Commanded openness, 1 = open, 0 = closed: (1 - a) / 2."""
        return (1 - np.clip(self.actions[:, 6], -1, 1)) / 2

    @property
    def openness(self) -> np.ndarray:
        """(T,) Measured openness, 1 = open: the distance between the fingers as a fraction of the largest."""
        return np.clip((self.state[:, 6] - self.state[:, 7]) / self.info.max_opening, 0, 1)

    @cached_property
    def noop(self) -> np.ndarray:
        """bool (T,): actions without motion that keep the gripper's command of the last kept action.

        This is the rule by which LIBERO's `no_noops` data were filtered (openvla, `regenerate_libero_dataset.py`). It
        also marks the steps in which the arm waits for a closing gripper. Drop marked steps only where a shorter wait
        is intended.
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
