"""Where to take hold of a thing: top-down two-finger grasps found in its collision points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from apt_bench.policies.oracle.geometry import World
from apt_bench.policies.oracle.motion import turned

YAWS = np.deg2rad([0, 90, -90, 45, -45, 22.5, -22.5, 67.5, -67.5])
DEPTHS = (0.03, 0.045, 0.02, 0.012)  # of the finger tips below the object's top
ABOVE_FLOOR = 0.01  # finger tips above the object's bottom
PAD = 0.012  # half height of what the fingers hold
STRIP = 0.009  # half width of a finger
GAP = 0.02  # a finger fits between two parts that are further apart
WIDEST = 0.072
MARGINS = (0.004, 0.0, -0.004)  # m of air around the hand; the next one where nothing is found
TILTS = np.deg2rad([0, 20])  # of the hand away from the base, to reach far
NEAR = 0.9  # share of the arm's length that needs no tilt
BALL = 0.13  # m around the finger tips in which the hand may hit something
SLACK = 0.1  # extra cost of the arm's posture that is still good


@dataclass(frozen=True)
class Grasp:
    """A pose of the tool frame; `cost` (lower is better) has no unit."""

    position: np.ndarray
    rotation: np.ndarray
    width: float
    cost: float


def find_grasps(
    world: World, name: str, destination: np.ndarray | None = None, limit: int = 6
) -> list[Grasp]:
    """Grasps of an object as it lies now, best first.

    destination: (3,) where the object's origin shall go; grasps whose hand would collide there come last.
    """
    points = world.points(name)
    origin, centre = world.position(name), world.centre(name)
    others = world.obstacles(name)
    around = others[np.linalg.norm(others[:, :2] - centre[:2], axis=1) < 0.25]
    tree = KDTree(_thinned(np.concatenate([points, around])))
    stretched = world.stretch(centre) > NEAR
    candidates = sorted(
        (g for tilt in (TILTS if stretched else TILTS[:1]) for g in _candidates(world, points, centre, tilt)),
        key=lambda g: g.cost,
    )
    for margin in MARGINS:
        found: list[Grasp] = []
        for grasp in candidates:
            if not all(_differs(grasp, other) for other in found):
                continue
            near = tree.query_ball_point(grasp.position - BALL / 4 * grasp.rotation[:, 2], BALL)
            if world.hits_hand(tree.data[near], grasp.position, grasp.rotation, margin):
                continue
            cost = grasp.cost + world.arm.cost(grasp.position, grasp.rotation, name)
            if destination is not None:
                cost += 0.5 * world.arm.cost(grasp.position + destination - origin, grasp.rotation, name)
            found.append(replace(grasp, cost=cost))
            if sum(g.cost < grasp.cost + SLACK for g in found) >= limit or len(found) >= 4 * limit:
                break
        if any(g.cost < 1 for g in found):
            break
    return sorted(found, key=lambda g: g.cost)[:limit]


def _candidates(world: World, points: np.ndarray, centre: np.ndarray, tilt: float) -> list[Grasp]:
    top, bottom = points[:, 2].max(), points[:, 2].min()
    heights = list(dict.fromkeys(round(max(top - d, bottom + ABOVE_FLOOR), 3) for d in DEPTHS))
    found = []
    for yaw in YAWS:
        rotation = turned(yaw)
        tilted = leaning(world, centre, tilt) @ rotation
        along, across = points @ rotation[:, 0], points @ rotation[:, 1]
        middle = float(centre @ rotation[:, 1])
        for rank, z in enumerate(heights):
            level = np.abs(points[:, 2] - z) < PAD
            if not level.any():
                continue
            low, high = across[level].min(), across[level].max()
            for v in [middle, *np.arange(low + 0.004, high, 0.008)]:
                strip = level & (np.abs(across - v) < STRIP)
                for start, end in _parts(along[strip]):
                    u = (start + end) / 2
                    position = u * rotation[:, 0] + v * rotation[:, 1]
                    position[2] = z
                    off = float(np.linalg.norm(position[:2] - centre[:2]))
                    cost = 2 * off + 0.5 * (end - start) + 0.015 * abs(yaw) + 0.01 * rank + 0.1 * tilt
                    found.append(Grasp(position, tilted, end - start, cost))
    return found


def leaning(world: World, target: np.ndarray, tilt: float) -> np.ndarray:
    """(3, 3) that turns a hand pointing down so that it points away from the base by `tilt` (rad)."""
    away = target[:2] - world.base
    away /= max(float(np.linalg.norm(away)), 1e-6)
    return Rotation.from_rotvec(-tilt * np.array([-away[1], away[0], 0.0])).as_matrix()


def _parts(values: np.ndarray) -> list[tuple[float, float]]:
    """Intervals of material narrow enough for the fingers, single parts or neighbours together."""
    if not len(values):
        return []
    values = np.sort(values)
    cuts = np.flatnonzero(np.diff(values) > GAP)
    starts, ends = values[np.r_[0, cuts + 1]], values[np.r_[cuts, len(values) - 1]]
    return [
        (float(starts[i]), float(ends[j]))
        for i in range(len(starts))
        for j in range(i, len(ends))
        if ends[j] - starts[i] < WIDEST
    ]


def _collides(world: World, grasp: Grasp, points: np.ndarray) -> bool:
    return world.hits_hand(points, grasp.position, grasp.rotation, MARGIN)


def _thinned(points: np.ndarray) -> np.ndarray:
    """One point of each 4 mm cell."""
    _, keep = np.unique(np.round(points / 0.004).astype(int), axis=0, return_index=True)
    return points[np.sort(keep)]


def _differs(a: Grasp, b: Grasp) -> bool:
    return bool(
        np.linalg.norm(a.position - b.position) > 0.012
        or abs(float(a.rotation[:, 0] @ b.rotation[:, 0])) < 0.9
    )
