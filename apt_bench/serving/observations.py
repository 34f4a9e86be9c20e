"""What clients send, checked and in the form of `envs.base.Observation`; and poses as actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.core.errors import UserError
from apt_bench.envs.base import ACTION_SCALE, action_towards
from apt_bench.policies.preprocessing import resize

SIDE = 256
"""Height and width of the images in observations, pixels. The suites render this size."""

MOST_PIXELS = 4096
STATE_DIM = 8


def image_of(value: Any, name: str) -> np.ndarray:
    """A client's image, uint8 (256, 256, 3). Other sizes are resized with PIL's bilinear filter.

    Raises:
        UserError: It is no square RGB image. The suites' images are square, so another shape was cropped or padded.
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        found = (
            f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        )
        raise UserError(f"'{name}' must be an RGB image, uint8 (H, W, 3); it is {found}.")
    height, width = value.shape[:2]
    if height != width or not 1 <= height <= MOST_PIXELS:
        raise UserError(
            f"'{name}' is {width}x{height}. Send square images of at most {MOST_PIXELS} pixels, at best "
            f"{SIDE}x{SIDE}: the whole image that the suite renders."
        )
    return resize(value, (SIDE, SIDE))


def state_of(value: Any, name: str) -> np.ndarray:
    """A client's state as float32 (8,). Raises UserError where it is not 8 finite numbers."""
    try:
        state = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"'{name}' is no array of numbers.") from None
    if state.shape != (STATE_DIM,) or not np.isfinite(state).all():
        raise UserError(
            f"'{name}' must be {STATE_DIM} finite numbers (position, axis-angle, finger positions); it has the "
            f"shape {state.shape}."
        )
    return state.astype(np.float32)


def canonical(state: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
    """The state with its axis-angle in robosuite's form.

    A rotation has two axis-angles with an angle in [0, 2 pi): v, and v - 2 pi v / |v|. They belong to the quaternions
    q and -q. robosuite's quaternion changes continuously during an episode, and its x is positive at the start, where
    the gripper points down. vla-eval's antipodal form takes the quaternion with w >= 0, which jumps.

    Args:
        state: float32 (8,).
        previous: The canonical state before it in the same episode; None at the start.

    Returns:
        `state` itself, or a copy with the other axis-angle.
    """
    turn = state[3:6].astype(np.float64)
    angle = float(np.linalg.norm(turn))
    if angle == 0.0:
        return state
    reference = np.array([1.0, 0.0, 0.0, 0.0]) if previous is None else _quaternion(previous[3:6])
    if _quaternion(turn) @ reference >= 0:
        return state
    other = state.copy()
    other[3:6] = turn * (angle - 2 * np.pi) / angle
    return other


def _quaternion(turn: np.ndarray) -> np.ndarray:
    """The quaternion (x, y, z, w) of an axis-angle; angles above pi have a negative w."""
    angle = float(np.linalg.norm(turn))
    if angle == 0.0:
        return np.array([0.0, 0.0, 0.0, 1.0])
    return np.append(np.sin(angle / 2) * np.asarray(turn, np.float64) / angle, np.cos(angle / 2))


def clipped(actions: np.ndarray) -> np.ndarray:
    """Actions in [-1, 1], as every environment of apt-bench executes them."""
    return np.clip(actions, -1.0, 1.0)


def towards(pose: np.ndarray, state: np.ndarray) -> np.ndarray:
    """The action (7,) in [-1, 1] that steers from a state to a pose."""
    return clipped(action_towards(pose, state))


def chained(poses: np.ndarray, state: np.ndarray) -> np.ndarray:
    """A chunk of poses as actions (n, 7), for a client that sends no state between them.

    Each action starts where the action before it would lead if the arm followed it exactly.

    Args:
        poses: (n, 7), see `PolicySpec.actions`.
        state: The state of the decision, (8,).
    """
    arm = np.asarray(state, np.float64).copy()
    actions = []
    for pose in poses:
        action = towards(pose, arm)
        move = action[:6] * ACTION_SCALE
        arm[:3] += move[:3]
        arm[3:6] = (Rotation.from_rotvec(move[3:]) * Rotation.from_rotvec(arm[3:6])).as_rotvec()
        actions.append(action)
    return np.stack(actions)
