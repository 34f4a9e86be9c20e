"""Flat wide things: taken by their rim with a leaning hand, or pressed down and dragged along the table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apt_bench.policies.oracle.articulated import front_approach_frame
from apt_bench.policies.oracle.grasps import TILT_COST, Grasp
from apt_bench.policies.oracle.motion import (
    CLOSE,
    OPEN,
    Motion,
    action_towards,
    follow_path,
    move_to,
    top_down_frame,
    up,
)
from apt_bench.policies.oracle.paths import plan
from apt_bench.policies.oracle.world import World

AZIMUTHS = np.deg2rad(np.arange(-180, 180, 15))
TILTS = np.deg2rad([12, 7])  # of the hand outwards, so that the outer finger gets under the rim
RIM_DEPTH = 0.022  # m of the rim between the fingers
STRIP = 0.01  # half width of a finger
CORNER_HEIGHT = (
    -0.004
)  # m from what the thing stands on to the lowest corner of the boxes around the open fingers
ON_TABLE = 0.01  # m: what stands higher does not stand on the table
PRESS, PRESS_STEP = (
    0.003,
    0.0005,
)  # m below the surface that the hand aims at; less of it while the hand sticks
MIN_STEP = 0.002  # m in one control step
MAX_HEIGHT = 0.03  # m
DRAG_SPEED = 0.5  # of full speed
YAWS = np.deg2rad([0, 90, 45, -45])  # of the dragging hand
ENOUGH_CLEARANCE = 0.02  # m of air around it that is enough
MAX_OFFSET = 0.05  # m from the middle: the thing has stayed behind


def rim_grasps(world: World, name: str, destination: np.ndarray, limit: int = 6) -> list[Grasp]:
    """Grasps of an object's rim from outside, one finger under it, best first; their cost is 1 or more where the arm or
    the hand is in the way."""
    points = world.points(name)
    centre = (points.max(0) + points.min(0)) / 2
    others = world.obstacles(name)
    others = others[np.linalg.norm(others[:, :2] - centre[:2], axis=1) < 0.3]
    shift = destination - world.position(name)
    geoms = frozenset(world.scene.objects[name].geoms)
    found = []
    for azimuth in AZIMUTHS:
        out = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        across = np.array([-out[1], out[0], 0.0])
        strip = np.abs((points - centre) @ across) < STRIP
        reach = float(((points - centre) @ out)[strip].max(initial=0.0))
        for tilt in TILTS:
            rotation = front_approach_frame(out, float(tilt))
            position = centre + (reach - RIM_DEPTH) * out
            position[2] = points[:, 2].min() + CORNER_HEIGHT - world.lowest_corner(rotation)
            cost = TILT_COST * float(tilt)
            if world.gripper_clearance((others @ rotation).T, position @ rotation) < 0.004:
                cost += 1
            cost += world.arm.cost(position + up(0.01), rotation, geoms)  # the tips may touch the table
            if cost < 1:
                cost += 0.5 * world.arm.cost(position + shift, rotation, geoms)
            found.append(Grasp(position, rotation, RIM_DEPTH, cost))
    return sorted(found, key=lambda g: g.cost)[:limit]


def is_flat(world: World, name: str) -> bool:
    """Whether the thing is wider than the hand opens, and too low to be held by its sides from above."""
    size = np.ptp(world.points(name), axis=0)
    return bool(size[2] < MAX_HEIGHT and size[:2].min() > world.scene.robot.max_opening)


def can_slide(world: World, name: str, target: str) -> bool:
    """Whether the thing stands on the table and shall go to another part of it."""
    region = world.scene.regions.get(target)
    on_table = world.points(name)[:, 2].min() - world.table_height < ON_TABLE
    return region is not None and region.parent not in world.scene.objects and bool(on_table)


def slide(world: World, name: str, spot: np.ndarray, done: Callable[[], bool]) -> Motion:
    """Press closed fingers onto the middle of a thing and drag it to `spot` (3,)."""
    centre = world.centre(name)
    points = world.points(name)
    near = np.linalg.norm(points[:, :2] - centre[:2], axis=1) < 0.015
    contact = np.array([*centre[:2], points[near, 2].max(initial=points[:, 2].min())])
    others = world.obstacles(name)
    others = others[np.linalg.norm(others[:, :2] - centre[:2], axis=1) < 0.3]

    def room(hand: np.ndarray) -> float:
        return min(
            world.gripper_clearance((others @ hand).T, contact @ hand, world.closed_gripper_boxes),
            ENOUGH_CLEARANCE,
        )

    hand = max((top_down_frame(yaw) for yaw in YAWS), key=room)  # the first of those with room enough
    above = contact + up(0.06)
    yield from follow_path(world, plan(world, above, hand, world.obstacles()), hand, CLOSE)
    yield from move_to(world, above, hand, CLOSE, tolerance=0.012, angle=0.06)
    yield from move_to(world, contact, hand, CLOSE, tolerance=0.004, steps=50, straight=True)
    press, last = PRESS, world.gripper_position
    for _ in range(160):
        offset = spot - world.position(name)
        if done() or np.linalg.norm((world.gripper_position - world.centre(name))[:2]) > MAX_OFFSET:
            break
        target = world.gripper_position + offset
        press += PRESS_STEP if np.linalg.norm(world.gripper_position - last) > MIN_STEP else -PRESS_STEP
        press = float(np.clip(press, -PRESS, PRESS))
        target[2], last = world.gripper_position[2] - press, world.gripper_position
        action = action_towards(world, target, hand, CLOSE)
        action[:2] *= DRAG_SPEED
        yield action
    yield from move_to(world, world.gripper_position + up(0.1), hand, OPEN, tolerance=0.03, steps=15)
    return done()
