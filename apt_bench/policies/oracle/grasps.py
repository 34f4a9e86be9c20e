"""Where to take hold of a thing: top-down two-finger grasps found in its collision points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apt_bench.policies.oracle.geometry import World
from apt_bench.policies.oracle.motion import turned

YAWS = np.deg2rad([0, 90, -90, 45, -45, 22.5, -22.5, 67.5, -67.5])
DEPTHS = (0.03, 0.045, 0.02, 0.012)  # of the finger tips below the object's top
ABOVE_FLOOR = 0.01  # finger tips above the object's bottom
PAD = 0.012  # half height of what the fingers hold
STRIP = 0.009  # half width of a finger
GAP = 0.02  # a finger fits between two parts that are further apart
WIDEST = 0.072
MARGIN = 0.004


@dataclass(frozen=True)
class Grasp:
    """A pose of the tool frame; `cost` (lower is better) has no unit."""

    position: np.ndarray
    rotation: np.ndarray
    width: float
    cost: float


def find_grasps(world: World, name: str, destination: np.ndarray | None = None, limit: int = 12) -> list[Grasp]:
    """Grasps of an object as it lies now, best first.

    destination: (3,) where the object's origin shall go; grasps whose hand would collide there come last.
    """
    points = world.points(name)
    origin, centre = world.position(name), world.centre(name)
    others = world.obstacles(name)
    here = others[np.linalg.norm(others[:, :2] - centre[:2], axis=1) < 0.25]
    there = np.zeros((0, 3))
    if destination is not None:
        there = others[np.linalg.norm(others[:, :2] - destination[:2], axis=1) < 0.25] - (destination - origin)
    found: list[Grasp] = []
    for grasp in sorted(_candidates(points, centre), key=lambda g: g.cost):
        if _collides(world, grasp, points) or _collides(world, grasp, here):
            continue
        if _collides(world, grasp, there):
            grasp = Grasp(grasp.position, grasp.rotation, grasp.width, grasp.cost + 1.0)
        if all(_differs(grasp, other) for other in found):
            found.append(grasp)
        if sum(g.cost < 1 for g in found) >= limit or len(found) >= 3 * limit:
            break
    return sorted(found, key=lambda g: g.cost)[:limit]


def _candidates(points: np.ndarray, centre: np.ndarray) -> list[Grasp]:
    top, bottom = points[:, 2].max(), points[:, 2].min()
    heights = list(dict.fromkeys(round(max(top - d, bottom + ABOVE_FLOOR), 3) for d in DEPTHS))
    found = []
    for yaw in YAWS:
        rotation = turned(yaw)
        along, across = points @ rotation[:, 0], points @ rotation[:, 1]
        middle = float(centre @ rotation[:, 1])
        for rank, z in enumerate(heights):
            level = np.abs(points[:, 2] - z) < PAD
            if not level.any():
                continue
            low, high = across[level].min(), across[level].max()
            for v in [middle, *np.arange(low + 0.004, high, 0.006)]:
                strip = level & (np.abs(across - v) < STRIP)
                for start, end in _parts(along[strip]):
                    u = (start + end) / 2
                    position = u * rotation[:, 0] + v * rotation[:, 1]
                    position[2] = z
                    off = float(np.linalg.norm(position[:2] - centre[:2]))
                    cost = 2 * off + 0.5 * (end - start) + 0.015 * abs(yaw) + 0.01 * rank
                    found.append(Grasp(position, rotation, end - start, cost))
    return found


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
    local = (points - grasp.position) @ grasp.rotation
    return any(
        bool(((local > low - MARGIN) & (local < high + MARGIN)).all(1).any()) for low, high in world.hand_boxes
    )


def _differs(a: Grasp, b: Grasp) -> bool:
    return bool(
        np.linalg.norm(a.position - b.position) > 0.012 or abs(float(a.rotation[:, 0] @ b.rotation[:, 0])) < 0.9
    )
