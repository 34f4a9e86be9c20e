"""Motions of the end effector: each is a generator of actions (7,) for the OSC_POSE controller.

Frames, units and the tool frame are those of `world.py`. The end effector's position is that of the grip site, between
the finger tips.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from apt_bench.policies.oracle.arm import rotation_vector
from apt_bench.policies.oracle.world import World

Motion = Generator[np.ndarray, None, bool]
"""Yields one action per control step; returns whether the motion reached its goal."""

OPEN, CLOSE = -1.0, 1.0
GAIN = 40.0  # action units per metre: commands twice the distance, because the controller lags behind
ROTATION_GAIN = 4.0  # action units per radian: commands twice the angle
SLOW_EXTENSION = 0.87  # extension of the arm above which it extends slowly
WRIST = np.pi / 4  # rad from `DOWN` to the middle of the range of the Panda's last joint
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Tool frame (3, 3) that points straight down, with the finger axis along world y."""


def up(height: float) -> np.ndarray:
    """A vector (3,) that points up and has this length (m)."""
    return np.array([0.0, 0.0, height])


def top_down_frame(yaw: float) -> np.ndarray:
    """`DOWN` rotated by `yaw` (rad) about the world z axis."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ DOWN


def tilted_frame(world: World, at: np.ndarray, direction: np.ndarray, tilt: float) -> np.ndarray:
    """Tool frame for the position `at` (3,): tilted by `tilt` (rad) from straight down towards the horizontal
    `direction` (3,), with a horizontal finger axis. Of the two such frames, the one that keeps the wrist joint nearer
    to the middle of its range."""
    approach = direction * np.sin(tilt) - up(np.cos(tilt))
    azimuth = float(np.arctan2(*(at[:2] - world.arm.base)[::-1]))
    middle = top_down_frame(azimuth + WRIST)[:, 0]
    x = np.array([-direction[1], direction[0], 0.0])
    x *= 1.0 if x @ middle >= 0 else -1.0
    return np.stack([x, np.cross(approach, x), approach], axis=1)


def without_tilt(rotation: np.ndarray) -> np.ndarray:
    """The tool frame with the same finger direction, pointing straight down. On the way to and from a tilted pose the
    wrist then rotates about the vertical only."""
    x = np.array([*rotation[:2, 0], 0.0]) / np.linalg.norm(rotation[:2, 0])
    return np.stack([x, np.cross([0, 0, -1.0], x), [0, 0, -1.0]], axis=1)


def servo(world: World, position: np.ndarray, rotation: np.ndarray, gripper: float) -> np.ndarray:
    """The action (7,) that moves the end effector towards a pose."""
    here, orientation = world.gripper_position, world.gripper_rotation
    move = GAIN * (position - here)
    move[:2] /= max(1.0, float(np.abs(move[:2]).max()))
    move[2] = np.clip(move[2], -1, 1)
    # An overshoot along the extension axis could straighten the elbow and flip it.
    outwards = world.arm.extension_axis(here, orientation)
    speed = float(move @ outwards) - np.clip(
        1 - 10 * (world.arm.extension(here, orientation) - SLOW_EXTENSION), 0.1, 1
    )
    move -= max(0.0, speed) * outwards
    if world.arm.elbow_flipped():
        move = outwards  # straighten the elbow: the controller's rest posture then bends it the right way
    turn = rotation_vector(rotation @ orientation.T)
    return np.concatenate([move, np.clip(ROTATION_GAIN * turn, -1, 1), [gripper]])


def move_to(
    world: World,
    position: np.ndarray,
    rotation: np.ndarray,
    gripper: float,
    tolerance: float = 0.01,
    angle: float = 0.12,
    steps: int = 60,
    straight: bool = False,
) -> Motion:
    """Move to a pose. Returns False when the end effector stops moving before it, or after `steps` control steps.

    tolerance: m. angle: rad. straight: slow down the descent while the end effector is beside the vertical line through
    the target.
    """
    last, stuck = np.full(3, np.inf), 0
    speed = world.variation.speed()
    for _ in range(int(steps / speed)):
        turn = float(np.linalg.norm(rotation_vector(rotation @ world.gripper_rotation.T)))
        here = world.gripper_position
        if np.linalg.norm(position - here) < tolerance and turn < angle:
            return True
        stuck = stuck + 1 if np.linalg.norm(here - last) < 1e-3 and turn < 0.3 else 0
        if stuck > 6:
            return False
        last = here
        action = servo(world, world.variation.aim(here, position), rotation, gripper)
        action[:6] *= speed
        if straight and action[2] < 0:
            drift = float(np.linalg.norm((position - here)[:2]))
            action[2] *= np.clip(1.3 - drift / 0.015, 0.15, 1.0)
        yield action
    return False


def follow_path(world: World, path: list[np.ndarray], rotation: np.ndarray, gripper: float) -> Motion:
    """Move along waypoints without stopping at them."""
    speed = world.variation.speed()
    for i, point in enumerate(path):
        final = i == len(path) - 1
        for _ in range(int(40 / speed)):
            if np.linalg.norm(point - world.gripper_position) < (0.02 if final else 0.03):
                break
            action = servo(world, world.variation.aim(world.gripper_position, point), rotation, gripper)
            action[:6] *= speed
            yield action
    return True


def hold(world: World, gripper: float, steps: int) -> Motion:
    """Keep the pose and move only the fingers."""
    position, rotation = world.gripper_position, world.gripper_rotation
    for _ in range(steps):
        yield servo(world, position, rotation, gripper)
    return True


def close_gripper(world: World) -> Motion:
    """Close the gripper until the fingers stop moving."""
    position, rotation = world.gripper_position, world.gripper_rotation
    last, still = np.inf, 0
    for _ in range(16):
        yield servo(world, position, rotation, CLOSE)
        still = still + 1 if abs(world.gripper_opening - last) < 5e-4 else 0
        last = world.gripper_opening
        if still >= 3:
            break
    return True
