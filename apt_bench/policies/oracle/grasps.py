"""Grasp poses: top-down two-finger grasps, found in the collision points of an object."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.policies.oracle.arm import MAX_EXTENSION
from apt_bench.policies.oracle.motion import DOWN, top_down_frame, up
from apt_bench.policies.oracle.world import World

YAWS = np.deg2rad([0, 15, -15, 30, -30, 45, -45, 60, -60, 75, -75, 90, -90])
DEPTHS = (0.03, 0.045, 0.02, 0.012)  # m, finger tips below the top of the object
ABOVE_BOTTOM = 0.01  # m, finger tips above the bottom of the object, at least
PAD_HALF_HEIGHT = 0.012  # m, half the height of the slice between the finger pads
FINGER_HALF_WIDTH = 0.009  # m
FINGER_GAP = 0.02  # m between two parts of an object, above which a finger fits between them
MAX_WIDTH = 0.072  # m between the fingers, at most
TILT_COST = 0.1  # per radian of tilt
SLOPE_COST = 0.3  # per unit of slope of the gripped faces
MARGINS = (0.004, 0.0, -0.004)  # m of clearance around the gripper; the next one where no grasp has the first
TILTS = np.deg2rad([0, 20])  # of the gripper away from the base, for far objects
TILT_ABOVE = 0.88  # extension of the arm above which these tilts are tried
LIFT = 0.06  # m
BACK_TILT = np.deg2rad(30)  # of the gripper towards the base, for near objects: the arm then folds less
BACK_TILT_BELOW = 0.4  # extension of the arm below which this tilt is used
BACK_TILT_HEIGHT = 0.05  # m, height of an object below which a gripper with this tilt does not get low enough
SLACK = 0.1  # cost of the arm's posture, below which a grasp counts as good


@dataclass(frozen=True)
class Grasp:
    """A grasp pose of the tool frame; `width` (m) between the fingers; `cost` (no unit, lower is better)."""

    position: np.ndarray
    rotation: np.ndarray
    width: float
    cost: float
    frame: int = -1  # index of its rotation among the candidates


def find_grasps(
    world: World,
    name: str,
    destination: np.ndarray | None = None,
    part: int | None = None,
    limit: int = 6,
    frames_to_try: Sequence[np.ndarray] = (),
) -> list[Grasp]:
    """Grasps of an object at its current pose, best first.

    destination: target (3,) of the object's origin; a grasp with which the robot would collide there costs more.
    part: joint whose moving part (a knob) is grasped instead of an object.
    frames_to_try: tool frames (3, 3) instead of the top-down ones.
    """
    if part is None:
        points, others, centre = world.points(name), world.obstacles(name), world.centre(name)
        geoms = frozenset(world.scene.objects[name].geoms)
    else:
        points, others, geoms = world.part_points(part), world.part_obstacles(part), world.part_geoms(part)
        centre = (points.max(0) + points.min(0)) / 2
    shift = None if destination is None else destination - world.position(name)
    around = others[np.linalg.norm(others[:, :2] - centre[:2], axis=1) < 0.22]
    cloud = _thinned(np.concatenate([points, around]))
    stretch = world.arm.extension(centre, DOWN)
    folded = stretch < BACK_TILT_BELOW and np.ptp(points[:, 2]) > BACK_TILT_HEIGHT
    tilts = TILTS if stretch > TILT_ABOVE else TILTS[:1] - (BACK_TILT if folded else 0)
    frames = list(frames_to_try) or [
        tilt_away_from_base(world, centre, float(tilt)) @ top_down_frame(yaw)
        for tilt in tilts
        for yaw in YAWS
    ]
    clouds = [(cloud @ frame).T.copy() for frame in frames]
    candidates = sorted(
        (g for frame in range(len(frames)) for g in _candidates(points, centre, frames[frame], frame)),
        key=lambda g: g.cost,
    )
    clearances: dict[int, float] = {}
    for margin in MARGINS:
        found: list[Grasp] = []
        for index, grasp in enumerate(candidates):
            if not all(_differ(grasp, other) for other in found):
                continue
            if index not in clearances:
                clearances[index] = world.gripper_clearance(
                    clouds[grasp.frame], grasp.position @ grasp.rotation
                )
            if clearances[index] < margin:
                continue
            found.append(replace(grasp, cost=grasp.cost + _posture(world, grasp, geoms, shift)))
            if sum(g.cost < grasp.cost + SLACK for g in found) >= limit or len(found) >= 3 * limit:
                break
        if any(g.cost < 1 for g in found):
            break
    return sorted(found, key=lambda g: g.cost)[:limit]


def top_down_clearance(world: World, name: str, *but: str) -> float:
    """Clearance (m) around the open gripper at the best grasp from straight above; negative = a collision. The objects
    `but` are ignored."""
    points, centre = world.points(name), world.centre(name)
    others = world.obstacles(name, *but)
    near = others[np.linalg.norm(others[:, :2] - centre[:2], axis=1) < 0.22]
    cloud, best = _thinned(np.concatenate([points, near])), -np.inf
    for yaw in YAWS[:-1]:  # -90 degrees is 90 degrees
        frame = top_down_frame(yaw)
        turned_cloud = (cloud @ frame).T.copy()
        for grasp in _candidates(points, centre, frame, 0):
            best = max(best, world.gripper_clearance(turned_cloud, grasp.position @ frame))
    return best


def _posture(world: World, grasp: Grasp, geoms: Collection[int], shift: np.ndarray | None) -> float:
    """Cost of the arm's postures at the grasp, after the lift and at the destination."""
    cost = world.arm.cost(grasp.position, grasp.rotation, geoms)
    cost += 10 * max(0.0, world.arm.extension(grasp.position + up(LIFT), grasp.rotation) - MAX_EXTENSION)
    if shift is not None and cost < 1:
        cost += 0.5 * world.arm.cost(grasp.position + shift, grasp.rotation, geoms)
    return cost


def _candidates(points: np.ndarray, centre: np.ndarray, frame: np.ndarray, index: int) -> list[Grasp]:
    """Grasps with the tool frame `frame` (3, 3), wherever the object is narrow enough along its x axis."""
    top, bottom = points[:, 2].max(), points[:, 2].min()
    heights = list(dict.fromkeys(round(max(top - d, bottom + ABOVE_BOTTOM), 3) for d in DEPTHS))
    u_axis = np.array([*frame[:2, 0], 0.0]) / np.linalg.norm(frame[:2, 0])
    v_axis = np.array([-u_axis[1], u_axis[0], 0.0])
    turn = np.arccos(min(1.0, abs(float(frame[:, 0] @ DOWN[:, 0]))))
    tilt = np.arccos(min(1.0, -float(frame[2, 2])))
    found = []
    along, across = points @ u_axis, points @ v_axis
    middle = float(centre @ v_axis)
    for rank, z in enumerate(heights):
        level = np.abs(points[:, 2] - z) < PAD_HALF_HEIGHT
        if not level.any():
            continue
        low, high = across[level].min(), across[level].max()
        for v in [middle, *np.arange(low + 0.004, high, 0.008)]:
            strip = level & (np.abs(across - v) < FINGER_HALF_WIDTH)
            for start, end in _parts(along[strip]):
                u = (start + end) / 2
                position = u * u_axis + v * v_axis
                position[2] = z
                off = float(np.linalg.norm(position[:2] - centre[:2]))
                cost = 2 * off + 0.5 * (end - start) + 0.015 * turn + 0.01 * rank + TILT_COST * tilt
                cost += SLOPE_COST * max(0.0, _slope(along[strip], across[strip] - v, start, end) - 0.5)
                found.append(Grasp(position, frame, end - start, cost, index))
    return found


def _slope(along: np.ndarray, across: np.ndarray, start: float, end: float) -> float:
    """Slope of the two gripped faces against the fingers: the larger of their tangents. A round object that is gripped
    off its middle slips out."""
    mine = (along >= start) & (along <= end)
    left, right = along[mine & (across < 0)], along[mine & (across >= 0)]
    if not len(left) or not len(right):
        return 1.0
    return float(max(abs(left.min() - right.min()), abs(left.max() - right.max()))) / FINGER_HALF_WIDTH


def tilt_away_from_base(world: World, target: np.ndarray, tilt: float) -> np.ndarray:
    """Rotation matrix (3, 3) that tilts a downward tool frame away from the base by `tilt` (rad)."""
    away = target[:2] - world.arm.base
    away /= max(float(np.linalg.norm(away)), 1e-6)
    return Rotation.from_rotvec(-tilt * np.array([-away[1], away[0], 0.0])).as_matrix()


def _parts(values: np.ndarray) -> list[tuple[float, float]]:
    """Intervals that fit between the fingers: single parts of the object, or adjacent parts together."""
    if not len(values):
        return []
    values = np.sort(values)
    cuts = np.flatnonzero(np.diff(values) > FINGER_GAP)
    starts, ends = values[np.r_[0, cuts + 1]], values[np.r_[cuts, len(values) - 1]]
    return [
        (float(starts[i]), float(ends[j]))
        for i in range(len(starts))
        for j in range(i, len(ends))
        if ends[j] - starts[i] < MAX_WIDTH
    ]


def _thinned(points: np.ndarray) -> np.ndarray:
    """One point of each cell of 4 mm."""
    _, keep = np.unique(np.round(points / 0.004).astype(int), axis=0, return_index=True)
    return points[np.sort(keep)]


def _differ(a: Grasp, b: Grasp) -> bool:
    return bool(
        np.linalg.norm(a.position - b.position) > 0.012
        or abs(float(a.rotation[:, 0] @ b.rotation[:, 0])) < 0.9
    )
