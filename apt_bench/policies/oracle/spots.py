"""Where to put a thing down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apt_bench.policies.oracle.geometry import World


@dataclass(frozen=True)
class Spot:
    """`position` (3,): where the object's origin shall stand; `drop`: height above it from which it may fall, m."""

    position: np.ndarray
    drop: float
    cost: float


def find_spots(world: World, name: str, target: str, predicate: str) -> list[Spot]:
    """Spots for an object in or on a region or another object, best first; never empty."""
    points, origin = world.points(name), world.position(name)
    footprint = points - origin  # as it stands now; a grasp from above keeps it so
    others = world.obstacles(name)
    if target in world.scene.objects:
        centres = [world.position(target)]
    else:
        box = world.box(target)
        if box is None:
            centres = [world.position(world.scene.regions[target].parent)]
        else:
            centre, rotation, half = box
            reach = np.abs(rotation @ half)
            shrink = np.maximum(reach[:2] - 0.015, 0.0)
            centres = [
                centre + [a * shrink[0], b * shrink[1], 0]
                for a in (0, -0.5, 0.5, -0.9, 0.9)
                for b in (0, -0.5, 0.5, -0.9, 0.9)
            ]
    spots = []
    for centre in centres:
        floor = _floor(footprint + [*centre[:2], 0], others, world.surface)
        z = floor - footprint[:, 2].min()
        off = float(np.linalg.norm(centre[:2] - centres[0][:2]))
        crowd = _crowding(footprint + [*centre[:2], z + 0.004], others)
        spots.append(
            Spot(
                np.array([*centre[:2], z]),
                0.04 if predicate == "in" else 0.0,
                off + crowd + 2 * (floor - world.surface),
            )
        )
    return sorted(spots, key=lambda s: s.cost)


def _floor(shadow: np.ndarray, others: np.ndarray, surface: float) -> float:
    """Height of what lies under the middle of the object."""
    middle = (shadow[:, :2].max(0) + shadow[:, :2].min(0)) / 2
    radius = 0.6 * float(np.ptp(shadow[:, :2], axis=0).min()) / 2
    under = np.linalg.norm(others[:, :2] - middle, axis=1) < radius
    return float(others[under, 2].max(initial=surface))


def _crowding(body: np.ndarray, others: np.ndarray) -> float:
    """Overlap of the standing object with what is there: share of obstacle points inside its bounding box, scaled."""
    low, high = body.min(0), body.max(0)
    return 0.02 * float(((others > low) & (others < high)).all(1).sum() > 0)
