"""Insert an object from the side into a covered region, such as a microwave."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.spatial import cKDTree

from apt_bench.policies.oracle.articulated import front_approach_frame, quarter_turn, rotation_matrix
from apt_bench.policies.oracle.grasps import Grasp, find_grasps
from apt_bench.policies.oracle.motion import CLOSE, OPEN, Motion, hold, move_to, servo, up
from apt_bench.policies.oracle.paths import plan_and_follow
from apt_bench.policies.oracle.pick_place import pick, place
from apt_bench.policies.oracle.world import World

TILTS = np.deg2rad([45, 60, 35])  # of the gripper that reaches in
CORRIDOR = 0.04  # m, half width and half height of the free space that an open side needs
MAX_GRASP_WIDTH = 0.03  # m, for a handle or a wall; wider parts slip out of a tilted gripper
DEPTHS = (0.0, 0.3, 0.6)  # placements, as shares of the way from the middle of the region to its opening
LATERAL = np.linspace(-0.8, 0.8, 9)  # and as shares of the region's half width
SAG = 0.03  # m that an object held by its handle may hang lower on the way
CARRY_HEIGHT = 0.015  # m above the floor of the region, at which the object is moved in


def side_opening(world: World, target: str) -> np.ndarray | None:
    """Horizontal unit vector (3,) that points out of a covered region through its open side. None where the region is
    not covered or has no open side."""
    box = world.box(target) if target in world.scene.regions else None
    parent = world.scene.regions[target].parent if box is not None else ""
    if box is None or parent not in world.scene.objects:
        return None
    centre, rotation, _ = box
    offsets = world.points(parent) - centre
    if not ((np.abs(offsets[:, :2]) < CORRIDOR).all(1) & (offsets[:, 2] > 0)).any():
        return None
    for out in (sign * rotation[:, axis] for axis in (1, 0) for sign in (-1, 1)):
        across = np.cross(out, [0, 0, 1.0])
        beam = (
            (np.abs(offsets @ across) < CORRIDOR) & (np.abs(offsets[:, 2]) < CORRIDOR) & (offsets @ out > 0)
        )
        if abs(out[2]) < 0.1 and not beam.any():
            return out
    return None


def insertion_grasps(
    world: World, name: str, target: str, out: np.ndarray
) -> Iterator[tuple[np.ndarray, Grasp]]:
    """Pairs of a target (3,) for the object's origin and a grasp with which the arm can reach it, best first."""
    box = world.box(target)
    assert box is not None
    centre, rotation, half = box
    across = np.cross(out, [0, 0, 1.0])
    depth, width = (float(np.abs(rotation @ half) @ np.abs(axis)) for axis in (out, across))
    shape = world.points(name) - world.position(name)
    others = world.obstacles(name)
    around = np.linalg.norm((others - centre)[:, :2], axis=1) < 0.03
    floor = float(others[around & (others[:, 2] < centre[2]), 2].max(initial=world.table_height))
    tree = cKDTree(others[others[:, 2] > floor + 0.005])
    frames = _side_frames(out)
    for share in DEPTHS:
        best = (-1.0, centre)
        for side in LATERAL:
            placement = centre + share * depth * out + side * width * across
            placement[2] = floor - shape[:, 2].min() + 0.003
            best = max(best, (float(tree.query(shape + placement)[0].min()), placement), key=lambda b: b[0])
        placement = best[1]
        geoms = frozenset(world.scene.objects[name].geoms)
        shift = placement - world.position(name)
        for grasp in find_grasps(world, name, placement, frames_to_try=frames):
            there = world.arm.cost(grasp.position + shift, grasp.rotation, geoms)
            if grasp.width < MAX_GRASP_WIDTH and grasp.cost < 1 and there < 1:
                yield placement, grasp


def reorient(world: World, name: str, out: np.ndarray) -> Motion:
    """Pick an object and place it where it was, rotated so that its handle points towards `out` (3,)."""
    here = world.position(name)
    for turn in (np.pi, np.pi / 2, -np.pi / 2):
        back = _rotation_about_z(-turn)
        if any(
            g.width < MAX_GRASP_WIDTH
            for g in find_grasps(world, name, frames_to_try=_side_frames(back @ out))
        ):
            break
    else:
        yield from hold(world, OPEN, 1)
        return False
    geoms = frozenset(world.scene.objects[name].geoms)
    best: tuple[float, Grasp, float] | None = None
    for grasp in find_grasps(world, name):
        for angle in {turn, turn - 2 * np.pi if turn == np.pi else turn}:
            spin = _rotation_about_z(angle)
            there = here + spin @ (grasp.position - here)
            cost = grasp.cost + world.arm.cost(there, spin @ grasp.rotation, geoms)
            if best is None or cost < best[0]:
                best = cost, grasp, angle
    if best is None or not (yield from pick(world, name, best[1])):
        return False
    _, grasp, angle = best
    half, whole = (_rotation_about_z(share * angle) @ grasp.rotation for share in (0.5, 1.0))
    yield from move_to(world, world.gripper_position + up(0.02), half, CLOSE, tolerance=0.03, steps=40)
    yield from move_to(world, world.gripper_position, whole, CLOSE, tolerance=0.03, steps=40)
    yield from place(world, name, here, 0.0, lambda: False, whole)
    for rotation in (half, grasp.rotation):  # rotate back, away from the wrist's joint limit
        yield from move_to(world, world.gripper_position, rotation, OPEN, tolerance=0.05, angle=0.3, steps=30)
    return True


def _rotation_about_z(angle: float) -> np.ndarray:
    return rotation_matrix(np.array([0.0, 0.0, angle]))


def _side_frames(out: np.ndarray) -> list[np.ndarray]:
    return [quarter_turn(front_approach_frame(out, float(tilt))) for tilt in TILTS]


def insert(
    world: World,
    name: str,
    target: str,
    placement: np.ndarray,
    out: np.ndarray,
    rotation: np.ndarray,
    done: Callable[[], bool],
) -> Motion:
    """Move the held object in front of the opening of the region `target`, then in, and release it.

    placement: target (3,) of the object's origin. out: unit vector (3,) that points out of the region.
    """
    load = world.points(name)
    load_depth = world.gripper_position[2] - load[:, 2].min()
    parent = world.points(world.scene.regions[target].parent) - placement
    walls = parent[(np.abs(parent @ np.cross(out, [0, 0, 1.0])) < CORRIDOR) & (parent[:, 2] > 0)]
    way = float((walls @ out).max() - ((load - world.position(name)) @ out).min()) + 0.02
    outside = placement + way * out + up(CARRY_HEIGHT)
    above = world.gripper_position + outside - world.position(name)
    radius = float(np.linalg.norm((load - world.gripper_position)[:, :2], axis=1).max()) + 0.01
    yield from plan_and_follow(world, above, rotation, CLOSE, held=(name, load_depth + SAG, radius))
    for point in (outside, placement + up(CARRY_HEIGHT), placement):
        for _ in range(50):
            offset = point - world.position(name)
            if np.linalg.norm(offset) < 0.01 or not world.grasped(name):
                break
            if point is placement and world.supported(name):
                break
            yield servo(world, world.gripper_position + offset, rotation, CLOSE)
    yield from hold(world, OPEN, 5)
    yield from move_to(world, world.gripper_position + way * out, rotation, OPEN, tolerance=0.03, steps=30)
    yield from move_to(world, world.gripper_position + up(0.15), rotation, OPEN, tolerance=0.03, steps=20)
    return done()
