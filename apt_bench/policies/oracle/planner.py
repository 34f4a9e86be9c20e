"""From the goal's atoms to a sequence of skills."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from apt_bench.envs.base import Atom
from apt_bench.policies.oracle.geometry import World
from apt_bench.policies.oracle.grasps import Grasp, find_grasps
from apt_bench.policies.oracle.motion import DOWN, OPEN, Motion, go, hold
from apt_bench.policies.oracle.skills import pick, place
from apt_bench.policies.oracle.spots import Spot, find_spots

ROUNDS = 8  # times that the whole goal is gone through


def expert(world: World) -> Iterator[np.ndarray]:
    """Actions, without end: work on every atom that does not hold yet, again and again, then stay."""
    for attempt in range(ROUNDS):
        pending = [atom for atom in world.scene.goal if not world.scene.holds(atom)]
        if not pending:
            break
        for atom in pending:
            if not world.scene.holds(atom):
                yield from achieve(world, atom, attempt)
    while True:
        yield from hold(world, OPEN, 10)


def achieve(world: World, atom: Atom, attempt: int) -> Motion:
    """One atom, once. `attempt` chooses another grasp and another spot after a failure."""
    if atom.predicate in ("on", "in") and len(atom.args) == 2 and world.scene.objects[atom.args[0]].movable:
        return (yield from move_object(world, atom, attempt))
    yield from hold(world, OPEN, 1)
    return False


def move_object(world: World, atom: Atom, attempt: int) -> Motion:
    """Pick the first argument and place it in or on the second."""
    name, place_name = atom.args
    spots = find_spots(world, name, place_name, atom.predicate)
    spot = spots[attempt % len(spots)]
    grasps = find_grasps(world, name, spot.position)
    if not grasps:
        top = world.points(name)[:, 2].max()
        grasps = [Grasp(np.array([*world.centre(name)[:2], top - 0.02]), DOWN, 0.0, 9.0)]
    grasp = grasps[attempt % len(grasps)]
    if not (yield from pick(world, name, grasp)):
        return False
    return (
        yield from place(
            world, name, spot.position, spot.drop, lambda: world.scene.holds(atom), grasp.rotation
        )
    )


__all__ = ["Generator", "Spot", "achieve", "expert", "go"]
