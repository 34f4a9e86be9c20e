"""Collision-free paths of the end effector: over and around obstacles, within reach of the arm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import grey_dilation

from apt_bench.policies.oracle.arm import MAX_EXTENSION
from apt_bench.policies.oracle.motion import Motion, follow_path
from apt_bench.policies.oracle.world import World

CELL = 0.01  # m, size of a cell of the height map
MARGIN = 0.3  # m that the height map extends beyond obstacles, start and end
STRIDE = 0.03  # m between waypoints
CLEARANCE = 0.03  # m above obstacles
PALM_RADIUS, PALM_HEIGHT = 0.11, 0.045  # m, of the palm around the finger tips, and above them
DETOURS = (0.0, 0.06, -0.06, 0.12, -0.12, 0.2, -0.2, 0.3, -0.3)  # m to the side of the straight line


@dataclass(frozen=True)
class HeightMap:
    """Height (m) of the highest obstacle point in each cell of a horizontal grid."""

    corner: np.ndarray
    heights: np.ndarray

    @staticmethod
    def of(points: np.ndarray, surface: float, extra: np.ndarray) -> HeightMap:
        """The map of obstacle points (n, 3) on a table at the height `surface`. It covers them and `extra` (m, 2)."""
        plane = np.concatenate([points[:, :2], extra])
        corner = plane.min(0) - MARGIN
        shape = np.ceil((plane.max(0) + MARGIN - corner) / CELL).astype(int) + 1
        heights = np.full(shape, surface)
        cells = ((points[:, :2] - corner) / CELL).astype(int)
        np.maximum.at(heights, (cells[:, 0], cells[:, 1]), points[:, 2])
        return HeightMap(corner, heights)

    def grown(self, radius: float) -> HeightMap:
        """A map with each cell raised to the highest value within `radius` (m)."""
        n = int(np.ceil(radius / CELL))
        grid = np.arange(-n, n + 1)
        disc = grid[:, None] ** 2 + grid[None] ** 2 <= (radius / CELL) ** 2
        return HeightMap(self.corner, grey_dilation(self.heights, footprint=disc))

    def at(self, xy: np.ndarray) -> np.ndarray:
        """Heights (n,) at horizontal positions (n, 2)."""
        cells = ((xy - self.corner) / CELL).astype(int)
        cells = np.clip(cells, 0, np.array(self.heights.shape) - 1)
        return self.heights[cells[:, 0], cells[:, 1]]


def plan(
    world: World,
    end: np.ndarray,
    rotation: np.ndarray,
    obstacles: np.ndarray,
    load_depth: float = 0.01,
    radius: float = 0.06,
) -> list[np.ndarray]:
    """Waypoints (3,) of the finger tips from the current position to `end` (3,).

    The path is straight, or makes a detour to the side where that is lower or better within reach. `load_depth` and
    `radius`: how far the held object extends below and around the finger tips (m).
    """
    start = world.gripper_position
    base = HeightMap.of(obstacles, world.table_height, np.stack([start[:2], end[:2]]))
    load, palm = base.grown(radius), base.grown(PALM_RADIUS)
    best: tuple[float, list[np.ndarray]] | None = None
    way = end[:2] - start[:2]
    side = np.array([-way[1], way[0]]) / max(float(np.linalg.norm(way)), 1e-6)
    for offset in DETOURS if np.linalg.norm(way) > 0.08 else (0.0,):
        for share in (0.5,) if offset == 0 else (0.2, 0.5, 0.8):
            middle = start[:2] + share * way + offset * side
            track = np.concatenate([_line(start[:2], middle), _line(middle, end[:2])[1:]])
            need = np.maximum(load.at(track) + load_depth, palm.at(track) - PALM_HEIGHT) + CLEARANCE
            need = np.maximum(need, np.linspace(start[2], end[2], len(track)))
            # The end effector cuts corners.
            need[1:-1] = np.maximum(need[1:-1], np.maximum(need[:-2], need[2:]))
            length = float(np.linalg.norm(np.diff(track, axis=0), axis=1).sum())
            beyond = sum(
                max(0.0, world.arm.extension(np.array([*xy, z]), rotation) - MAX_EXTENSION)
                for xy, z in zip(track, need, strict=True)
            )
            cost = length + 1.5 * float(need.max()) + 10 * beyond
            if best is None or cost < best[0] - 1e-9:
                best = cost, [np.array([*xy, z]) for xy, z in zip(track, need, strict=True)]
    assert best is not None
    return best[1]


def plan_and_follow(
    world: World,
    end: np.ndarray,
    rotation: np.ndarray,
    gripper: float,
    planned: np.ndarray | None = None,
    held: tuple[str, float, float] | None = None,
) -> Motion:
    """Plan a path to `end` (3,) and follow it.

    planned: tool frame for which the reach of the arm is checked; None = `rotation`. held: name of the held object, and
    how far it extends below and around the finger tips (m).
    """
    frame = rotation if planned is None else planned
    if held is None:
        path = plan(world, end, frame, world.obstacles())
    else:
        path = plan(world, end, frame, world.obstacles(held[0]), *held[1:])
    return (yield from follow_path(world, path, rotation, gripper))


def _line(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    n = max(1, int(np.ceil(np.linalg.norm(b - a) / STRIDE)))
    return a + (b - a) * np.linspace(0, 1, n + 1)[:, None]
