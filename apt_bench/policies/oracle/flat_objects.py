"""Flat, wide objects such as plates: grasped by the rim with a tilted gripper, or dragged along the table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apt_bench.policies.oracle.articulated import front_approach_frame
from apt_bench.policies.oracle.grasps import TILT_COST, Grasp
from apt_bench.policies.oracle.motion import CLOSE, OPEN, Motion, move_to, servo, top_down_frame, up
from apt_bench.policies.oracle.paths import plan_and_follow
from apt_bench.policies.oracle.world import World

AZIMUTHS = np.deg2rad(np.arange(-180, 180, 15))
TILTS = np.deg2rad([12, 7])  # of the gripper outwards, so that the outer finger gets under the rim
RIM_DEPTH = 0.022  # m of the rim between the fingers
STRIP = 0.01  # m, half the width of a finger
CORNER_HEIGHT = -0.004  # m, lowest corner of the open gripper's boxes above the surface under the object
ON_TABLE = 0.01  # m above the table, below which an object stands on it
PRESS, PRESS_STEP = (
    0.003,
    0.0005,
)  # m below the gripper that it aims while dragging, at most; change per control step
MIN_STEP = 0.002  # m per control step, below which the gripper is stuck and presses less
MAX_HEIGHT = 0.03  # m
DRAG_SPEED = 0.5  # share of full speed
YAWS = np.deg2rad([0, 90, 45, -45])  # of the gripper while dragging
ENOUGH_CLEARANCE = 0.02  # m around the closed gripper; more is no better
MAX_OFFSET = 0.05  # m between gripper and centre of mass, above which the gripper has lost the object


def rim_grasps(world: World, name: str, destination: np.ndarray, limit: int = 6) -> list[Grasp]:
    """Grasps of an object's rim from outside, with one finger under it, best first. The cost is 1 or more where the arm
    or the gripper would collide."""
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
    """Whether the object is wider than the gripper opens and too low for a top-down grasp of its sides."""
    size = np.ptp(world.points(name), axis=0)
    return bool(size[2] < MAX_HEIGHT and size[:2].min() > world.scene.robot.max_opening)


def can_slide(world: World, name: str, target: str) -> bool:
    """Whether the object stands on the table and its target is a region of the table."""
    region = world.scene.regions.get(target)
    on_table = world.points(name)[:, 2].min() - world.table_height < ON_TABLE
    return region is not None and region.parent not in world.scene.objects and bool(on_table)


def slide(world: World, name: str, target: np.ndarray, done: Callable[[], bool]) -> Motion:
    """Press closed fingers onto the middle of an object and drag its origin to `target` (3,)."""
    centre = world.centre(name)
    points = world.points(name)
    near = np.linalg.norm(points[:, :2] - centre[:2], axis=1) < 0.015
    contact = np.array([*centre[:2], points[near, 2].max(initial=points[:, 2].min())])
    others = world.obstacles(name)
    others = others[np.linalg.norm(others[:, :2] - centre[:2], axis=1) < 0.3]

    def clearance(frame: np.ndarray) -> float:
        return min(
            world.gripper_clearance((others @ frame).T, contact @ frame, world.closed_gripper_boxes),
            ENOUGH_CLEARANCE,
        )

    frame = max((top_down_frame(yaw) for yaw in YAWS), key=clearance)  # the first one with enough clearance
    pre_contact = contact + up(0.06)
    yield from plan_and_follow(world, pre_contact, frame, CLOSE)
    yield from move_to(world, pre_contact, frame, CLOSE, tolerance=0.012, angle=0.06)
    yield from move_to(world, contact, frame, CLOSE, tolerance=0.004, steps=50, straight=True)
    press, last = PRESS, world.gripper_position
    for _ in range(160):
        offset = target - world.position(name)
        if done() or np.linalg.norm((world.gripper_position - world.centre(name))[:2]) > MAX_OFFSET:
            break
        aim = world.gripper_position + offset
        press += PRESS_STEP if np.linalg.norm(world.gripper_position - last) > MIN_STEP else -PRESS_STEP
        press = float(np.clip(press, -PRESS, PRESS))
        aim[2], last = world.gripper_position[2] - press, world.gripper_position
        action = servo(world, aim, frame, CLOSE)
        action[:2] *= DRAG_SPEED
        yield action
    yield from move_to(world, world.gripper_position + up(0.1), frame, OPEN, tolerance=0.03, steps=15)
    return done()
