"""What the hand can do: pick, place. Every skill is a generator of actions that returns whether it worked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from apt_bench.policies.oracle.arm import MAX_EXTENSION
from apt_bench.policies.oracle.grasps import LIFT, Grasp
from apt_bench.policies.oracle.motion import (
    CLOSE,
    OPEN,
    Motion,
    action_towards,
    close_gripper,
    follow_path,
    hold,
    move_to,
    up,
)
from apt_bench.policies.oracle.paths import plan
from apt_bench.policies.oracle.world import World

MIN_RISE = (
    0.012  # m that a held thing has risen after the hand has by LIFTED (it may swing down below the grip)
)
TOUCHDOWN = 0.03  # m above the spot within which a touch means that it stands
OVERHANG = 0.008  # m around a thing in which nothing may hang over it
MAX_RETREAT = 0.15  # m that a thing is drawn aside
BLOCKED = 0.015  # m short of the grasp: something is in the way


def pick(world: World, name: str, grasp: Grasp) -> Motion:
    """Grip and lift an object; False (fingers open again, above it) where it stayed behind."""
    heights = (
        h for h in (0.10, 0.07) if world.arm.extension(grasp.position + up(h), grasp.rotation) < MAX_EXTENSION
    )
    miss = world.variation.near_miss()
    grasp = replace(grasp, position=grasp.position + miss)
    above = grasp.position + up(next(heights, 0.05))
    via = world.variation.via(above)
    if world.arm.extension(via, grasp.rotation) > MAX_EXTENSION:
        via = above
    yield from follow_path(world, plan(world, via, grasp.rotation, world.obstacles()), grasp.rotation, OPEN)
    yield from move_to(world, above, grasp.rotation, OPEN, tolerance=0.012, angle=0.06)
    yield from move_to(
        world, grasp.position, grasp.rotation, OPEN, tolerance=0.006, angle=0.06, steps=40, straight=True
    )
    if np.linalg.norm(grasp.position - world.gripper_position) > BLOCKED:
        yield from move_to(world, above, grasp.rotation, OPEN, tolerance=0.02, steps=20)
        return False
    yield from close_gripper(world)
    before = world.position(name)[2]
    aside = retreat_from_overhang(world, name)
    if aside.any():
        yield from move_to(
            world,
            world.gripper_position + aside + up(0.005),
            grasp.rotation,
            CLOSE,
            tolerance=0.015,
            steps=25,
        )
    lifted = world.arm.into_reach(grasp.position + aside + up(LIFT), grasp.rotation)
    yield from move_to(world, lifted, grasp.rotation, CLOSE, tolerance=0.015, steps=20)
    if world.grasped(name) and world.position(name)[2] - before > MIN_RISE:
        return True
    yield from hold(world, OPEN, 4)
    yield from move_to(world, above, grasp.rotation, OPEN, tolerance=0.02, steps=20)
    return False


def retreat_from_overhang(world: World, name: str) -> np.ndarray:
    """(3,) horizontal way of a thing out from under a fixture that hangs over its edge; zero where it can go up."""
    load = world.points(name)
    fixed = [world.points(n) for n, o in world.scene.objects.items() if not o.movable]
    others = np.concatenate(fixed) if fixed else np.zeros((0, 3))
    others = others[others[:, 2] > load[:, 2].max()]
    if not len(others):
        return np.zeros(3)
    over = others[cKDTree(load[:, :2]).query(others[:, :2])[0] < OVERHANG]
    away = (load.mean(0) - over.mean(0)) * [1, 1, 0] if len(over) else np.zeros(3)
    if np.linalg.norm(away) < OVERHANG:
        return np.zeros(3)
    away /= np.linalg.norm(away)
    return away * min(float((over @ away).max() - (load @ away).min()) + 2 * OVERHANG, MAX_RETREAT)


def place(
    world: World, name: str, spot: np.ndarray, drop: float, done: Callable[[], bool], rotation: np.ndarray
) -> Motion:
    """Carry the held object so that its origin stands over `spot` (3,), lower it until it touches something or its
    origin is at the spot's height, and let go. `drop`: height above the spot from which it may fall."""
    load = world.points(name)
    load_depth = world.gripper_position[2] - load[:, 2].min()
    radius = float(np.linalg.norm((load - world.gripper_position)[:, :2], axis=1).max()) + 0.01
    above = world.gripper_position + spot - world.position(name) + up(drop + 0.02)
    yield from follow_path(
        world, plan(world, above, rotation, world.obstacles(name), load_depth, radius), rotation, CLOSE
    )
    height = world.gripper_position[2]
    for _ in range(40):  # the hand follows the object, which may hang askew
        offset = spot - world.position(name)
        offset[2] = height - world.gripper_position[2]
        if np.linalg.norm(offset[:2]) < 0.006:
            break
        if not world.grasped(name):
            return False
        yield action_towards(world, world.gripper_position + offset, rotation, CLOSE)
    for _ in range(60):
        offset = spot + up(drop) - world.position(name)
        if done() or (world.supported(name) and offset[2] > -TOUCHDOWN):
            break
        if offset[2] > -0.003:
            break
        if not world.grasped(name):
            return False
        offset[2] = max(offset[2], -0.03)
        yield action_towards(world, world.gripper_position + offset, rotation, CLOSE)
    yield from hold(world, OPEN, 5)
    away = world.arm.into_reach(world.gripper_position + up(0.12), rotation)
    yield from move_to(world, away, rotation, OPEN, tolerance=0.02, steps=20)
    return done()
