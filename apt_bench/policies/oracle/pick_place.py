"""Pick and place. Each is a generator of actions (7,) that returns whether it succeeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from apt_bench.policies.oracle.arm import MAX_EXTENSION
from apt_bench.policies.oracle.grasps import LIFT, Grasp
from apt_bench.policies.oracle.motion import CLOSE, OPEN, Motion, close_gripper, hold, move_to, servo, up
from apt_bench.policies.oracle.paths import plan_and_follow
from apt_bench.policies.oracle.world import World

MIN_RISE = 0.012  # m that a grasped object has risen after the lift (it may swing down below the finger tips)
TOUCHDOWN = 0.03  # m above the target height within which a contact means that the object stands
OVERHANG = 0.008  # m around an object within which nothing may hang over it
MAX_RETREAT = 0.15  # m that an object is moved sideways from under an overhang
BLOCKED = 0.015  # m from the grasp pose: an obstacle stopped the descent


def pick(world: World, name: str, grasp: Grasp) -> Motion:
    """Grasp and lift an object. Returns False if it was not lifted; the gripper is then open at the pre-grasp pose."""
    heights = (
        h for h in (0.10, 0.07) if world.arm.extension(grasp.position + up(h), grasp.rotation) < MAX_EXTENSION
    )
    miss = world.variation.near_miss()
    grasp = replace(grasp, position=grasp.position + miss)
    pre_grasp = grasp.position + up(next(heights, 0.05))
    via = world.variation.via(pre_grasp)
    if world.arm.extension(via, grasp.rotation) > MAX_EXTENSION:
        via = pre_grasp
    yield from plan_and_follow(world, via, grasp.rotation, OPEN)
    yield from move_to(world, pre_grasp, grasp.rotation, OPEN, tolerance=0.012, angle=0.06)
    yield from move_to(
        world, grasp.position, grasp.rotation, OPEN, tolerance=0.006, angle=0.06, steps=40, straight=True
    )
    if np.linalg.norm(grasp.position - world.gripper_position) > BLOCKED:
        yield from move_to(world, pre_grasp, grasp.rotation, OPEN, tolerance=0.02, steps=20)
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
    yield from move_to(world, pre_grasp, grasp.rotation, OPEN, tolerance=0.02, steps=20)
    return False


def retreat_from_overhang(world: World, name: str) -> np.ndarray:
    """Horizontal vector (3,) that moves an object out from under a fixture that overhangs it; zero if none does."""
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
    world: World, name: str, target: np.ndarray, drop: float, done: Callable[[], bool], rotation: np.ndarray
) -> Motion:
    """Place the held object with its origin at `target` (3,) and retreat.

    The object is lowered until it touches something or its origin is at the target's height, and is then released.
    drop: height (m) above the target from which it may fall.
    """
    load = world.points(name)
    load_depth = world.gripper_position[2] - load[:, 2].min()
    radius = float(np.linalg.norm((load - world.gripper_position)[:, :2], axis=1).max()) + 0.01
    above = world.gripper_position + target - world.position(name) + up(drop + 0.02)
    yield from plan_and_follow(world, above, rotation, CLOSE, held=(name, load_depth, radius))
    height = world.gripper_position[2]
    for _ in range(40):  # the object may hang at an angle: servo its origin, not the gripper
        offset = target - world.position(name)
        offset[2] = height - world.gripper_position[2]
        if np.linalg.norm(offset[:2]) < 0.006:
            break
        if not world.grasped(name):
            return False
        yield servo(world, world.gripper_position + offset, rotation, CLOSE)
    for _ in range(60):
        offset = target + up(drop) - world.position(name)
        if done() or (world.supported(name) and offset[2] > -TOUCHDOWN):
            break
        if offset[2] > -0.003:
            break
        if not world.grasped(name):
            return False
        offset[2] = max(offset[2], -0.03)
        yield servo(world, world.gripper_position + offset, rotation, CLOSE)
    yield from hold(world, OPEN, 5)
    away = world.arm.into_reach(world.gripper_position + up(0.12), rotation)
    yield from move_to(world, away, rotation, OPEN, tolerance=0.02, steps=20)
    return done()
