"""The interface of an environment.

An environment receives an `EpisodeSpec` and actions, and never a policy. `step_chunk` executes one action chunk and
renders images at most once, at its end, because a policy sees nothing between two decisions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.suites import EpisodeSpec

ACTION_DIM = 7
"""Length of an action: translation (3), rotation vector (3), gripper (1).

The first six numbers are in [-1, 1]; one unit is 0.05 m or 0.5 rad per control step, along the world's axes. Only the
sign of the gripper's number counts: -1 opens, +1 closes."""

ACTION_SCALE = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])
"""One unit of an action's first six numbers: m (3) and rad (3) per control step (robosuite 1.4.0, `osc_pose.json`)."""

AGENTVIEW = "agentview"
WRIST = "wrist"

DEPTH = "_depth"
"""Ending of a camera's name that requests the camera's depth image: "agentview_depth"."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        K: (3, 3) intrinsics in pixels of the image in the observation. The focal length along x is negative where that
            image is a mirror image, as LIBERO's are.
        pose: (4, 4) transform from the camera's frame (OpenCV axes: x right, y down, z forward) to the world, in m.
    """

    K: np.ndarray
    pose: np.ndarray


@dataclass(frozen=True)
class Atom:
    """One predicate of a goal, as in a BDDL file but in lower case: `Atom("on", ("bowl_1", "plate_1"))`."""

    predicate: str
    args: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.predicate}({', '.join(self.args)})"


@dataclass(frozen=True)
class SceneObject:
    """A named object of the scene: movable (it has a free joint) or a fixture. Ids are MuJoCo's."""

    name: str
    category: str
    body: int  # root body id
    bodies: tuple[int, ...]  # every body of its subtree
    geoms: tuple[int, ...]  # every geom of its subtree
    movable: bool
    joints: tuple[int, ...] = ()  # its hinges and slides (drawer, knob, door); empty for a rigid object


@dataclass(frozen=True)
class Region:
    """A named region: a box-shaped site attached to an object, or an area of the table (then `site` is None)."""

    name: str
    parent: str  # the object or arena surface it belongs to
    site: int | None


@dataclass(frozen=True)
class Robot:
    """MuJoCo ids of the robot's parts.

    Attributes:
        grip_site: Site between the fingertips.
        finger_geoms: Geoms of the left and the right finger.
        finger_qpos: Addresses of the two finger joints in `qpos`.
        max_opening: Distance in m between the fingers of the open gripper.
        body_root: Root body.
        finger_m: Per finger (offset, slope): its position in m is offset + slope * qpos. A Panda's `qpos` already is
            that position.
    """

    grip_site: int
    finger_geoms: tuple[frozenset[int], frozenset[int]]
    finger_qpos: tuple[int, ...]
    max_opening: float
    body_root: int
    finger_m: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 1.0), (0.0, 1.0))

    def fingers(self, qpos: np.ndarray) -> np.ndarray:
        """The positions of the two fingers in m, (2,)."""
        offset, slope = np.array(self.finger_m).T
        return np.asarray(offset + slope * qpos[list(self.finger_qpos)])

    def opening(self, qpos: np.ndarray) -> float:
        """The distance between the fingers in m."""
        return float(np.abs(self.fingers(qpos)).sum())


class Scene(Protocol):
    """Ground truth from the simulator, for the outcome tracker and for scripted experts, never for a policy under test.

    The scene is live: it changes while the simulation runs. It must not be written to.
    """

    model: Any  # mujoco.MjModel
    data: Any  # mujoco.MjData
    objects: Mapping[str, SceneObject]
    regions: Mapping[str, Region]
    robot: Robot
    goal: tuple[Atom, ...]  # the goal of the current instruction: all of these must hold
    base_goal: tuple[Atom, ...]  # the goal of the unperturbed task of the same name; () if there is none
    targets: tuple[str, ...]  # the objects of interest

    def holds(self, atom: Atom) -> bool:
        """Return whether the predicate is true now, by the benchmark's own definition."""
        ...


@dataclass(frozen=True)
class Observation:
    """The input of a policy at a decision.

    Attributes:
        images: uint8 (H, W, 3), upright RGB, by camera name. Only the cameras that the policy asked for. Empty where
            nothing was rendered.
        depths: float32 (H, W), by camera name: the distance in m from the camera's plane along its optical axis, pixel
            for pixel with the camera's image. Only for cameras that the policy asked for with the ending `DEPTH`.
        state: float32 (8,): end-effector position (3, m, world frame), axis-angle of its orientation (3, rad,
            robosuite's formula) and gripper qpos (2, m).
        instruction: The instruction to follow now.
        episode: `EpisodeKey.id`.
        step: Number of control steps taken since settling.
        cameras: Pinhole camera of each image and depth image, by camera name.
        scene: Ground truth, only for policies whose spec sets `privileged`.
        noise_key: `EpisodeSpec.noise_key`. A policy must seed its noise with it and with `step`, never with `episode`.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    episode: str = ""
    step: int = 0
    cameras: Mapping[str, Camera] = field(default_factory=dict)
    scene: Scene | None = None
    noise_key: str = ""
    depths: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The state of an episode, during it or at its end.

    Attributes:
        success: Whether the task was done.
        done: Whether the episode is over: it succeeded, or its step budget is spent, or no subtask remains.
        steps: Number of control steps taken, without settling.
        start_hash: Hash of `qpos` after settling.
        end_hash: Hash of `qpos` now.
        failure: Class of failure; None on success and before the end.
        events: What happened, ready for JSON. Empty before the end.
        seconds: Wall-clock seconds spent in `reset`, `physics` and `render`.
    """

    success: bool
    done: bool
    steps: int
    start_hash: str
    end_hash: str
    failure: str | None = None
    events: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class Env(Protocol):
    """One robot in one scene. An environment need not be thread-safe. A run's worker has one."""

    def reset(
        self, spec: EpisodeSpec, cameras: tuple[str, ...] = (), privileged: bool = False
    ) -> Observation:
        """Start an episode, let the scene settle, and observe.

        Args:
            spec: The episode. Everything random must come from `spec.env_seed`.
            cameras: Names of the cameras to render in this episode. `agentview_depth` asks for a depth image.
            privileged: Whether observations carry the `scene`.

        Raises:
            UserError: The environment lacks a camera, or the episode does not exist.
        """
        ...

    def step_chunk(self, actions: np.ndarray, render: bool = True) -> Observation:
        """Execute an action chunk, one action per control step. Stop early when the episode is done.

        Args:
            actions: float (n, 7), see `ACTION_DIM`.
            render: Whether to render the images, once, inside the last control step (docs/protocol.md explains when).
                Where the episode ends before the last action, no image is rendered.

        Raises:
            ValueError: The actions have another shape or are not finite, or the episode is already over.
        """
        ...

    def outcome(self) -> Outcome:
        """Return the state of the episode now."""
        ...

    def frame(self, camera: str = AGENTVIEW, size: int = 256) -> np.ndarray:
        """Render the current state for a video, uint8 (size, size, 3). Does not change the physics."""
        ...

    def close(self) -> None:
        """Free the simulator and its GL context."""
        ...


def image_requests(names: Iterable[str], known: Collection[str], place: str) -> tuple[list[str], list[str]]:
    """The cameras of which images and of which depth images are requested.

    Args:
        names: Names as in `PolicySpec.cameras`; the ending `DEPTH` means the depth image.
        known: Cameras of the environment.
        place: The environment, as the message names it.

    Raises:
        UserError: The environment lacks a camera.
    """
    images: list[str] = []
    depths: list[str] = []
    for name in names:
        camera = name.removesuffix(DEPTH)
        if camera not in known:
            raise UserError(f"{place} has no camera '{camera}'. {did_you_mean(camera, known)}")
        (images if camera == name else depths).append(camera)
    return images, depths


def checked_actions(actions: np.ndarray, done: bool) -> np.ndarray:
    """Check an action chunk and clip it.

    Args:
        actions: (n, 7) with n >= 1.
        done: Whether the episode is over.

    Returns:
        float64 (n, 7) in [-1, 1].

    Raises:
        ValueError: The actions have another shape or are not finite, or the episode is over.
    """
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or not len(actions):
        raise ValueError(f"actions must have the shape (n, {ACTION_DIM}), not {actions.shape}")
    if not np.isfinite(actions).all():
        raise ValueError("actions must be finite")
    if done:
        raise ValueError("the episode is over: call reset")
    return np.asarray(np.clip(actions, -1.0, 1.0))


def action_towards(target: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Convert a target pose of the end effector into an action, relative to where the arm is now.

    The formula is that of APT's released LIBERO evaluator: [p_target - p, rotvec(R_target R^-1)] / scale.

    Args:
        target: (7,): position (m, world frame), rotation vector (rad) and the gripper's number.
        state: (8,), see `Observation.state`.

    Returns:
        (7,), not clipped, with the gripper's number unchanged.
    """
    # Imported here, because this import takes longer than all others together.
    from scipy.spatial.transform import Rotation

    wanted = np.array(
        target[3:6]
    )  # a copy: arrays from another process are read-only, which from_rotvec refuses
    turn = Rotation.from_rotvec(wanted) * Rotation.from_rotvec(state[3:6]).inv()
    move = np.concatenate([target[:3] - state[:3], turn.as_rotvec()])
    return np.concatenate([move / ACTION_SCALE, target[6:]])


def unmirrored(images: np.ndarray, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip mirror images back, so that every point of the scene keeps its pixel.

    Args:
        images: (..., H, W, 3).
        K: (3, 3) intrinsics in pixels. A negative focal length along x marks mirror images, as LIBERO's are.

    Returns:
        Images and intrinsics with a positive focal length along x; the arguments themselves where it is positive.
    """
    if K[0, 0] > 0:
        return images, K
    flip = np.array([[-1.0, 0, images.shape[-2] - 1], [0, 1, 0], [0, 0, 1]])
    return images[..., ::-1, :], flip @ K


def axis_angle(quat_wxyz: np.ndarray) -> np.ndarray:
    """Convert a quaternion (w, x, y, z) to a rotation vector (3,) in rad, with an angle in [0, 2 pi).

    This is robosuite's `quat2axisangle` (transform_utils.py) for MuJoCo's order; there is no sign flip.
    """
    w = min(1.0, max(-1.0, float(quat_wxyz[0])))
    sine = math.sqrt(1.0 - w * w)
    if sine == 0.0:
        return np.zeros(3)
    return np.asarray(quat_wxyz[1:] * 2.0 * math.acos(w) / sine)
