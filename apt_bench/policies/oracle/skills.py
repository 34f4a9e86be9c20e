"""What the hand can do: pick, place. Every skill is a generator of actions that returns whether it worked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apt_bench.policies.oracle.geometry import World
from apt_bench.policies.oracle.grasps import Grasp
from apt_bench.policies.oracle.motion import CLOSE, OPEN, Motion, clear_height, close_fingers, go, hold

CLEARANCE = 0.04  # m between what moves and what it passes over
HAND_RADIUS = 0.12  # m around the way that must be clear


def pick(world: World, name: str, grasp: Grasp) -> Motion:
    """Grip and lift an object; False (fingers open again, above it) where it stayed behind."""
    above = grasp.position + [0, 0, 0.10]
    yield from _over(world, above, grasp.rotation, OPEN, world.obstacles())
    yield from go(world, above, grasp.rotation, OPEN, tolerance=0.012, angle=0.06)
    yield from go(world, grasp.position, grasp.rotation, OPEN, tolerance=0.006, angle=0.06, steps=30)
    yield from close_fingers(world)
    before, hand = world.position(name)[2], world.grip[2]
    yield from go(world, grasp.position + [0, 0, 0.06], grasp.rotation, CLOSE, tolerance=0.015, steps=20)
    rise = world.position(name)[2] - before
    if world.gripped(name) and rise > 0.5 * (world.grip[2] - hand):
        return True
    yield from hold(world, OPEN, 4)
    yield from go(world, above, grasp.rotation, OPEN, tolerance=0.02, steps=20)
    return False


def place(
    world: World, name: str, spot: np.ndarray, drop: float, done: Callable[[], bool], rotation: np.ndarray
) -> Motion:
    """Carry the held object so that its origin stands over `spot` (3,), lower it until it touches something or its
    origin is at the spot's height, and let go. `drop`: height above the spot from which it may fall."""
    others = world.obstacles(name)
    bottom = world.points(name)[:, 2].min()
    top = clear_height(world, world.position(name), spot, others, HAND_RADIUS)
    rise = max(0.0, top + CLEARANCE - bottom)
    here = world.grip
    yield from go(world, here + [0, 0, rise], rotation, CLOSE, tolerance=0.02)
    for _ in range(80):  # the hand follows the object, which may hang askew
        offset = spot - world.position(name)
        offset[2] = here[2] + rise - world.grip[2]
        if np.linalg.norm(offset[:2]) < 0.006:
            break
        if not world.gripped(name):
            return False
        yield from _step(world, world.grip + offset, rotation)
    for _ in range(60):
        if done() or world.supported(name):
            break
        offset = spot + [0, 0, drop] - world.position(name)
        if offset[2] > -0.003:
            break
        if not world.gripped(name):
            return False
        offset[2] = max(offset[2], -0.03)
        yield from _step(world, world.grip + offset, rotation)
    yield from hold(world, OPEN, 5)
    yield from go(world, world.grip + [0, 0, 0.12], rotation, OPEN, tolerance=0.02, steps=20)
    return done()


def _step(world: World, position: np.ndarray, rotation: np.ndarray) -> Motion:
    from apt_bench.policies.oracle.motion import action_towards

    yield action_towards(world, position, rotation, CLOSE)
    return True


def _over(
    world: World, target: np.ndarray, rotation: np.ndarray, gripper: float, obstacles: np.ndarray
) -> Motion:
    """To above `target`, high enough for everything on the way."""
    top = clear_height(world, world.grip, target, obstacles, HAND_RADIUS)
    height = max(float(target[2]), top + CLEARANCE)
    here = world.grip
    if here[2] < height - 0.02:
        yield from go(world, np.array([*here[:2], height]), rotation, gripper, tolerance=0.03, angle=9)
    yield from go(world, np.array([*target[:2], height]), rotation, gripper, tolerance=0.03, angle=0.3)
    return True
