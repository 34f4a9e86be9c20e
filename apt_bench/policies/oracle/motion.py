"""Moving the hand: waypoint servoing through OSC_POSE deltas. Every motion is a generator of actions (7,)."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.policies.oracle.geometry import World

Motion = Generator[np.ndarray, None, bool]
"""Yields one action per control step; returns whether it got there."""

OPEN, CLOSE = -1.0, 1.0
GAIN = 20.0  # action units per metre: 1 unit asks for 5 cm in this step
ROTATION_GAIN = 2.0  # action units per radian
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Tool frame that points straight down, fingers along world y."""


def turned(yaw: float) -> np.ndarray:
    """`DOWN`, turned by `yaw` (rad) about the world's z."""
    return Rotation.from_euler("z", yaw).as_matrix() @ DOWN


def action_towards(
    world: World, position: np.ndarray, rotation: np.ndarray, gripper: float, speed: float = 1.0
) -> np.ndarray:
    """The action that brings the hand nearer to a pose. `speed`: share of the full step."""
    move = GAIN * (position - world.grip)
    length = float(np.abs(move).max())
    if length > speed:
        move *= speed / length
    turn = Rotation.from_matrix(rotation @ world.grip_rotation.T).as_rotvec()
    return np.concatenate([move, np.clip(ROTATION_GAIN * turn, -1, 1), [gripper]])


def go(
    world: World,
    position: np.ndarray,
    rotation: np.ndarray,
    gripper: float,
    tolerance: float = 0.01,
    angle: float = 0.12,
    steps: int = 60,
    speed: float = 1.0,
) -> Motion:
    """Straight to a pose. Ends early, False, where the hand no longer moves."""
    last, stuck = np.full(3, np.inf), 0
    for _ in range(steps):
        turn = Rotation.from_matrix(rotation @ world.grip_rotation.T).magnitude()
        here = world.grip
        if np.linalg.norm(position - here) < tolerance and turn < angle:
            return True
        stuck = stuck + 1 if np.linalg.norm(here - last) < 1e-3 and turn < 0.3 else 0
        if stuck > 6:
            return False
        last = here
        yield action_towards(world, position, rotation, gripper, speed)
    return False


def follow(world: World, path: list[np.ndarray], rotation: np.ndarray, gripper: float) -> Motion:
    """Along waypoints without stopping at them."""
    for i, point in enumerate(path):
        final = i == len(path) - 1
        for _ in range(40):
            if np.linalg.norm(point - world.grip) < (0.02 if final else 0.04):
                break
            yield action_towards(world, point, rotation, gripper)
    return True


def hold(world: World, gripper: float, steps: int) -> Motion:
    """Stay, moving only the fingers."""
    position, rotation = world.grip, world.grip_rotation
    for _ in range(steps):
        yield action_towards(world, position, rotation, gripper)
    return True


def close_fingers(world: World) -> Motion:
    """Close until the fingers stop."""
    position, rotation = world.grip, world.grip_rotation
    last, still = np.inf, 0
    for _ in range(16):
        yield action_towards(world, position, rotation, CLOSE)
        still = still + 1 if abs(world.opening - last) < 5e-4 else 0
        last = world.opening
        if still >= 3:
            break
    return True
