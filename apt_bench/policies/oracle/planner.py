"""From the goal's atoms to a sequence of skills."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from apt_bench.envs.base import Atom
from apt_bench.policies.oracle.articulated import joint_of, operate
from apt_bench.policies.oracle.geometry import World
from apt_bench.policies.oracle.grasps import Grasp, find_grasps
from apt_bench.policies.oracle.motion import DOWN, OPEN, Motion, hold
from apt_bench.policies.oracle.skills import pick, place
from apt_bench.policies.oracle.spots import find_spots

ORDER = {"open": 0, "turnon": 0, "turnoff": 0, "close": 2}  # joints before things, but doors are shut last
ROUNDS = 8  # times that the whole goal is gone through


def expert(world: World) -> Iterator[np.ndarray]:
    """Actions, without end: work on every atom that does not hold yet, again and again, then stay."""
    for attempt in range(ROUNDS):
        pending = [atom for atom in world.scene.goal if not world.scene.holds(atom)]
        if not pending:
            break
        for atom in sorted(pending, key=lambda a: ORDER.get(a.predicate, 1)):
            if not world.scene.holds(atom):
                yield from achieve(world, atom, attempt)
    while True:
        yield from hold(world, OPEN, 10)


def achieve(world: World, atom: Atom, attempt: int) -> Motion:
    """One atom, once. `attempt` chooses another grasp and another spot after a failure."""
    if atom.predicate in ("on", "in") and len(atom.args) == 2 and world.scene.objects[atom.args[0]].movable:
        return (yield from move_object(world, atom, attempt))
    return (yield from operate(world, atom, attempt))


def move_object(world: World, atom: Atom, attempt: int) -> Motion:
    """Pick the first argument and place it in or on the second."""
    name, place_name = atom.args
    drawer = Atom("open", (place_name,))
    if (
        joint_of(world, drawer) is not None
        and place_name in world.scene.regions
        and not world.scene.holds(drawer)
    ):
        yield from operate(world, drawer, attempt)
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
