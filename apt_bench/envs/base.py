"""What an environment gives and takes.

An environment knows an `EpisodeSpec`, never a policy. It renders only when it is asked to, at the end of a chunk:
`step_chunk` is the unit of work, because nothing between two decisions is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.suites import EpisodeSpec

ACTION_DIM = 7
"""x, y, z, rotation vector (each in [-1, 1], one unit = 0.05 m or 0.5 rad per control step, world axes), gripper
(sign only: -1 opens, +1 closes)."""

ACTION_SCALE = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])
"""One unit of an action's first six numbers: metres, rad per control step (robosuite 1.4.0, `osc_pose.json`)."""

AGENTVIEW = "agentview"
WRIST = "wrist"


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: `K` (3, 3) in pixels of the delivered image; `pose` (4, 4) maps camera (OpenCV axes: x right,
    y down, z forward) to world, metres."""

    K: np.ndarray
    pose: np.ndarray


@dataclass(frozen=True)
class Atom:
    """One predicate of a goal, as in the BDDL file but lower case: `Atom("on", ("bowl_1", "plate_1"))`."""

    predicate: str
    args: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.predicate}({', '.join(self.args)})"


@dataclass(frozen=True)
class SceneObject:
    """A named thing of the scene: something movable (it has a free joint) or a fixture."""

    name: str
    category: str
    body: int  # root body id
    bodies: tuple[int, ...]  # every body of its subtree
    geoms: tuple[int, ...]  # every geom of its subtree
    movable: bool
    joints: tuple[int, ...] = ()  # its hinges and slides (drawer, knob, door); empty for rigid things


@dataclass(frozen=True)
class Region:
    """A named place: a site box attached to an object, or an area of the table (then `site` is None)."""

    name: str
    parent: str  # the object or arena surface it belongs to
    site: int | None


@dataclass(frozen=True)
class Robot:
    """Ids of the robot's parts. `grip_site` lies between the finger tips; openness 1 = `max_opening` metres.
    `finger_m`: (offset, slope) from each finger's joint to its place in m; of the Panda's, the two are one."""

    grip_site: int
    finger_geoms: tuple[frozenset[int], frozenset[int]]  # left, right
    finger_qpos: tuple[int, ...]
    max_opening: float
    body_root: int
    finger_m: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 1.0), (0.0, 1.0))

    def fingers(self, qpos: np.ndarray) -> np.ndarray:
        """(2,) places of the fingers, m."""
        offset, slope = np.array(self.finger_m).T
        return np.asarray(offset + slope * qpos[list(self.finger_qpos)])

    def opening(self, qpos: np.ndarray) -> float:
        """Distance of the fingers, m."""
        return float(np.abs(self.fingers(qpos)).sum())


class Scene(Protocol):
    """Privileged view of the simulator: ground truth for the outcome tracker and for scripted experts, never for a
    policy under test. It is live (it changes as the simulation runs) and must not be written to."""

    model: Any  # mujoco.MjModel
    data: Any  # mujoco.MjData
    objects: Mapping[str, SceneObject]
    regions: Mapping[str, Region]
    robot: Robot
    goal: tuple[Atom, ...]  # all must hold
    base_goal: tuple[Atom, ...]  # what the unperturbed task of the same name asks; () where there is none
    targets: tuple[str, ...]  # objects of interest: the instruction is about these

    def holds(self, atom: Atom) -> bool:
        """Whether the predicate is true now, by the benchmark's own definition."""
        ...


@dataclass(frozen=True)
class Observation:
    """What a policy sees at a decision.

    images: uint8 (H, W, 3) upright RGB by camera name, only those that were asked for. state: float32 (8,) = end
    effector position (3, m, world), axis-angle of its orientation (3, rad, robosuite's formula), gripper qpos (2, m).
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    episode: str = ""  # EpisodeKey.id
    step: int = 0  # control steps taken since settling
    cameras: Mapping[str, Camera] = field(default_factory=dict)
    scene: Scene | None = None  # only for policies whose spec says privileged
    noise_key: str = ""  # EpisodeSpec.noise_key: seed noise with it and `step`, never with `episode`


@dataclass(frozen=True)
class Outcome:
    """How an episode stands. `done` = success, or the step budget is spent."""

    success: bool
    done: bool
    steps: int  # control steps taken, settling not counted
    start_hash: str  # of qpos after settling
    end_hash: str  # of qpos now
    failure: str | None = None  # class of failure, None on success
    events: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)  # reset, physics, render


class Env(Protocol):
    """One robot in one scene. Not thread safe; one per process."""

    def reset(
        self, spec: EpisodeSpec, cameras: tuple[str, ...] = (), privileged: bool = False
    ) -> Observation:
        """Start the episode, settle it, and observe."""
        ...

    def step_chunk(self, actions: np.ndarray, render: bool = True) -> Observation:
        """Execute `actions` (n, 7) one per control step, stopping early when the episode is done. The images are
        rendered once, inside the last control step (docs/protocol.md says why there); `render=False` skips them."""
        ...

    def outcome(self) -> Outcome:
        """How the episode stands now."""
        ...

    def frame(self, camera: str = AGENTVIEW, size: int = 256) -> np.ndarray:
        """Render the state as it is now, for videos and people. Does not touch the physics."""
        ...

    def close(self) -> None:
        """Free the simulator and its GL context."""
        ...


def action_towards(target: np.ndarray, state: np.ndarray) -> np.ndarray:
    """The action (7,) that asks the controller for a pose, from where the arm is now.

    target (7,): position (m, world), rotation vector (rad), gripper; state: `Observation.state`. As the released LIBERO
    evaluator of APT: [p_target - p, rotvec(R_target R^-1)] / scale, not clipped; the gripper's number stays."""
    wanted = np.array(target[3:6])  # arrays from another process are read-only, which from_rotvec refuses
    turn = Rotation.from_rotvec(wanted) * Rotation.from_rotvec(state[3:6]).inv()
    move = np.concatenate([target[:3] - state[:3], turn.as_rotvec()])
    return np.concatenate([move / ACTION_SCALE, target[6:]])


def unmirrored(images: np.ndarray, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images (..., H, W, 3) and their intrinsics (3, 3) in pixels, turned back where they are mirror images (negative
    focal length along x, as LIBERO's): every point keeps its pixel."""
    if K[0, 0] > 0:
        return images, K
    back = np.array([[-1.0, 0, images.shape[-2] - 1], [0, 1, 0], [0, 0, 1]])
    return images[..., ::-1, :], back @ K


def axis_angle(quat_wxyz: np.ndarray) -> np.ndarray:
    """robosuite's `quat2axisangle` (transform_utils.py), for MuJoCo's order: angle in [0, 2 pi), no sign flip."""
    w = min(1.0, max(-1.0, float(quat_wxyz[0])))
    sine = math.sqrt(1.0 - w * w)
    if sine == 0.0:
        return np.zeros(3)
    return np.asarray(quat_wxyz[1:] * 2.0 * math.acos(w) / sine)
