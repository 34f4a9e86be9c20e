"""Where to place an object."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from apt_bench.policies.oracle.arm import MAX_EXTENSION
from apt_bench.policies.oracle.motion import DOWN, up
from apt_bench.policies.oracle.world import World

GRID = (0.0, -0.2, 0.2, -0.4, 0.4, -0.6, 0.6, -0.8, 0.8)  # candidates, in shares of the region's half size
INSET = 0.015  # m between the object's origin and the edge of the region, at least
ABOVE_REGION = 0.05  # m above a thin region for "on": higher points do not belong to its support surface
HEIGHT_COST = 5.0  # cost per metre above the lowest candidate
CELL = 0.01  # m, of the grid that measures overlap
DROP = 0.04  # m above the floor of a container from which the object is released


@dataclass(frozen=True)
class Placement:
    """A candidate: `position` (3,) of the object's origin, `drop`: height (m) above it from which the object may fall,
    `cost` (no unit, lower is better)."""

    position: np.ndarray
    drop: float
    cost: float


def find_placements(
    world: World, name: str, target: str, predicate: str, shared: bool = False
) -> list[Placement]:
    """Placements of an object in or on a region or another object, best first; never empty.

    shared: another object will be placed beside it, so prefer the end of the target that is farther from the robot,
    along the object's narrow side.
    """
    shape = world.points(name) - world.position(name)  # a top-down grasp keeps its orientation
    others = world.obstacles(name)
    middle = _target_centre(world, target)
    box = world.box(target) if target in world.scene.regions else None
    ceiling = (
        np.inf
        if box is None
        else box[0][2] + np.abs(box[1] @ box[2])[2] + (ABOVE_REGION if predicate == "on" else 0.0)
    )
    below = others[others[:, 2] < ceiling]  # the floor of a drawer, not what is above the drawer
    placements = []
    for centre in _centres(world, target, middle):
        floor = _floor(shape[:, :2] + centre[:2], below, world.table_height)
        position = np.array([*centre[:2], floor - shape[:, 2].min()])
        overlap = _overlap(shape + position, others[others[:, 2] > floor + 0.008])
        grip = position + up(shape[:, 2].max())
        far = max(0.0, world.arm.extension(grip, DOWN) - MAX_EXTENSION + 0.03)
        off = float(np.linalg.norm(centre[:2] - middle[:2]))
        placements.append(Placement(position, DROP if predicate == "in" else 0.0, off + overlap + 5 * far))
    if shared:
        side = np.eye(3)[int(np.ptp(shape[:, 1]) < np.ptp(shape[:, 0]))]
        side *= np.sign(side[:2] @ (middle[:2] - world.arm.base)) or 1.0
        placements = [replace(s, cost=s.cost - 2 * float(side @ (s.position - middle))) for s in placements]
    ground = min(s.position[2] for s in placements)  # a higher placement stands on another object
    placements = [replace(s, cost=s.cost + HEIGHT_COST * float(s.position[2] - ground)) for s in placements]
    return sorted(placements, key=lambda s: s.cost)


def _target_centre(world: World, target: str) -> np.ndarray:
    if target in world.scene.objects:
        return world.position(target)
    box = world.box(target)
    if box is not None:
        return box[0]
    parent = world.scene.regions[target].parent
    return (
        world.position(parent) if parent in world.scene.objects else np.array([0.0, 0.0, world.table_height])
    )


def _centres(world: World, target: str, middle: np.ndarray) -> list[np.ndarray]:
    box = world.box(target) if target in world.scene.regions else None
    if box is None:
        return [middle]
    _, rotation, half = box
    reach = np.maximum(np.abs(rotation @ half) - INSET, 0.0)
    return [middle + np.array([a * reach[0], b * reach[1], 0.0]) for a in GRID for b in GRID]


def _floor(footprint: np.ndarray, others: np.ndarray, surface: float) -> float:
    """Height (m) of the support under the middle of the object's footprint (n, 2)."""
    middle = (footprint.max(0) + footprint.min(0)) / 2
    radius = 0.3 * float(np.ptp(footprint, axis=0).min())
    under = np.linalg.norm(others[:, :2] - middle, axis=1) < radius
    return float(others[under, 2].max(initial=surface))


def _overlap(body: np.ndarray, others: np.ndarray) -> float:
    """Cost of the part of the footprint of `body` (n, 3) that points above the support (m, 3) occupy."""
    near = others[(np.abs(others[:, :2] - body[:, :2].mean(0)) < 0.2).all(1)]
    mine = {tuple(c) for c in np.floor(body[:, :2] / CELL).astype(int)}
    taken = {tuple(c) for c in np.floor(near[:, :2] / CELL).astype(int)}
    return 0.02 * len(mine & taken)
