"""Moving the hand: waypoint servoing through OSC_POSE deltas. Every motion is a generator of actions (7,)."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from apt_bench.policies.oracle.arm import rotation_vector
from apt_bench.policies.oracle.world import World

Motion = Generator[np.ndarray, None, bool]
"""Yields one action per control step; returns whether it got there."""

OPEN, CLOSE = -1.0, 1.0
GAIN = 40.0  # action units per metre: twice the distance is asked for, because the controller lags behind
ROTATION_GAIN = 4.0  # action units per radian: twice the angle
SLOW_EXTENSION = 0.87  # share of the arm's length from which on it stretches slowly
WRIST = np.pi / 4  # rad from `DOWN` to the middle of the range of the Panda's last joint
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Tool frame that points straight down, fingers along world y."""


def up(height: float) -> np.ndarray:
    """(3,) a step of that many metres against gravity."""
    return np.array([0.0, 0.0, height])


def top_down_frame(yaw: float) -> np.ndarray:
    """`DOWN`, turned by `yaw` (rad) about the world's z."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ DOWN


def tilted_frame(world: World, at: np.ndarray, direction: np.ndarray, tilt: float) -> np.ndarray:
    """Tool frame of a hand at the position `at` (3,) that points along the horizontal `direction` (3,) by `lean` (rad)
    from straight down, its fingers side by side: of the two, the one that keeps the wrist nearer to its middle."""
    approach = direction * np.sin(tilt) - up(np.cos(tilt))
    azimuth = float(np.arctan2(*(at[:2] - world.arm.base)[::-1]))
    middle = top_down_frame(azimuth + WRIST)[:, 0]
    x = np.array([-direction[1], direction[0], 0.0])
    x *= 1.0 if x @ middle >= 0 else -1.0
    return np.stack([x, np.cross(approach, x), approach], axis=1)


def without_tilt(rotation: np.ndarray) -> np.ndarray:
    """The same hand without its lean: on the way to and from a leaning pose the wrist then turns only about the
    vertical and does not wind up."""
    x = np.array([*rotation[:2, 0], 0.0]) / np.linalg.norm(rotation[:2, 0])
    return np.stack([x, np.cross([0, 0, -1.0], x), [0, 0, -1.0]], axis=1)


def action_towards(world: World, position: np.ndarray, rotation: np.ndarray, gripper: float) -> np.ndarray:
    """The action (7,) that brings the hand nearer to a pose."""
    current_position, current_rotation = world.gripper_position, world.gripper_rotation
    move = GAIN * (position - current_position)
    move[:2] /= max(1.0, float(np.abs(move[:2]).max()))
    move[2] = np.clip(move[2], -1, 1)
    outwards = world.arm.extension_axis(
        current_position, current_rotation
    )  # an overshoot could straighten the elbow and flip it
    speed = float(move @ outwards) - np.clip(
        1 - 10 * (world.arm.extension(current_position, current_rotation) - SLOW_EXTENSION), 0.1, 1
    )
    move -= max(0.0, speed) * outwards
    if world.arm.elbow_flipped():
        move = (
            outwards  # straighten it: the controller's pull to its rest posture then bends it the right way
        )
    turn = rotation_vector(rotation @ current_rotation.T)
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
    """To a pose. Ends early, False, where the hand no longer moves. `straight`: down only as fast as the hand stays
    on the vertical through the target."""
    last, stuck = np.full(3, np.inf), 0
    speed = world.variation.speed()
    for _ in range(int(steps / speed)):
        turn = float(np.linalg.norm(rotation_vector(rotation @ world.gripper_rotation.T)))
        current_position = world.gripper_position
        if np.linalg.norm(position - current_position) < tolerance and turn < angle:
            return True
        stuck = stuck + 1 if np.linalg.norm(current_position - last) < 1e-3 and turn < 0.3 else 0
        if stuck > 6:
            return False
        last = current_position
        action = action_towards(world, world.variation.aim(current_position, position), rotation, gripper)
        action[:6] *= speed
        if straight and action[2] < 0:
            drift = float(np.linalg.norm((position - current_position)[:2]))
            action[2] *= np.clip(1.3 - drift / 0.015, 0.15, 1.0)
        yield action
    return False


def follow_path(world: World, path: list[np.ndarray], rotation: np.ndarray, gripper: float) -> Motion:
    """Along waypoints without stopping at them."""
    speed = world.variation.speed()
    for i, point in enumerate(path):
        final = i == len(path) - 1
        for _ in range(int(40 / speed)):
            if np.linalg.norm(point - world.gripper_position) < (0.02 if final else 0.03):
                break
            action = action_towards(
                world, world.variation.aim(world.gripper_position, point), rotation, gripper
            )
            action[:6] *= speed
            yield action
    return True


def hold(world: World, gripper: float, steps: int) -> Motion:
    """Stay, moving only the fingers."""
    position, rotation = world.gripper_position, world.gripper_rotation
    for _ in range(steps):
        yield action_towards(world, position, rotation, gripper)
    return True


def close_gripper(world: World) -> Motion:
    """Close until the fingers stop."""
    position, rotation = world.gripper_position, world.gripper_rotation
    last, still = np.inf, 0
    for _ in range(16):
        yield action_towards(world, position, rotation, CLOSE)
        still = still + 1 if abs(world.gripper_opening - last) < 5e-4 else 0
        last = world.gripper_opening
        if still >= 3:
            break
    return True
