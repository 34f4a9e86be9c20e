"""From the atoms of the goal to a sequence of motions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from apt_bench.envs.base import Atom
from apt_bench.policies.oracle.articulated import joint_of, operate
from apt_bench.policies.oracle.clutter import make_room
from apt_bench.policies.oracle.flat_objects import can_slide, is_flat, rim_grasps, slide
from apt_bench.policies.oracle.grasps import find_grasps
from apt_bench.policies.oracle.insertion import insert, insertion_grasps, reorient, side_opening
from apt_bench.policies.oracle.motion import OPEN, Motion, hold
from apt_bench.policies.oracle.pick_place import pick, place
from apt_bench.policies.oracle.placements import find_placements
from apt_bench.policies.oracle.world import World

ORDER = {"open": 0, "turnon": 0, "turnoff": 0, "close": 2}  # joints before objects; close last
MAX_PUSHES = 3  # to make space for one grasp, at most
ROUNDS = 8  # passes over the whole goal, at most


def expert(world: World) -> Iterator[np.ndarray]:
    """Actions of one episode, without end: work on each atom that does not hold, for `ROUNDS` passes, then do
    not move."""
    for attempt in range(ROUNDS):
        pending = [atom for atom in world.scene.goal if not world.scene.holds(atom)]
        if not pending:
            break
        for atom in sorted(pending, key=lambda a: ORDER.get(a.predicate, 1)):
            if world.scene.holds(atom):
                continue
            if atom.predicate == "close" and any(
                not world.scene.holds(a) for a in pending if a.predicate != "close"
            ):
                break  # what belongs inside is not there yet
            yield from achieve(world, atom, attempt)
    while True:
        yield from hold(world, OPEN, 10)


def achieve(world: World, atom: Atom, attempt: int) -> Motion:
    """Try once to make an atom true. After a failure, the next `attempt` uses another grasp and another placement. An
    atom that no motion can change is skipped."""
    if _can_move(world, atom):
        return (yield from move_object(world, atom, attempt))
    return (yield from operate(world, atom, attempt))


def _can_move(world: World, atom: Atom) -> bool:
    scene = world.scene
    if atom.predicate not in ("on", "in") or len(atom.args) != 2 or atom.args[1] == atom.args[0]:
        return False
    item, place_name = scene.objects.get(atom.args[0]), atom.args[1]
    region = scene.regions.get(place_name)
    return item is not None and item.movable and (place_name in scene.objects or region is not None)


def move_object(world: World, atom: Atom, attempt: int) -> Motion:
    """Pick the atom's first argument and place it in or on the second. A closed drawer is opened first."""
    name, place_name = atom.args
    drawer = Atom("open", (place_name,))
    is_drawer = place_name in world.scene.regions and joint_of(world, drawer) is not None
    if is_drawer and not world.scene.holds(drawer):
        yield from operate(world, drawer, attempt)

    def done() -> bool:
        return world.scene.holds(atom)

    out = side_opening(world, place_name) if atom.predicate == "in" and not is_drawer else None
    if out is not None:
        ways = list(insertion_grasps(world, name, place_name, out))
        if not ways:
            yield from reorient(world, name, out)
            ways = list(insertion_grasps(world, name, place_name, out))
        if not ways:
            return False
        inside, grasp = ways[attempt % len(ways)]
        if not (yield from pick(world, name, grasp)):
            return False
        return (yield from insert(world, name, place_name, inside, out, grasp.rotation, done))
    others = (a for a in world.scene.goal if a.args[1:] == (place_name,) and a.args[0] != name)
    shared = atom.predicate == "on" and any(not world.scene.holds(a) for a in others)
    placements = find_placements(world, name, place_name, atom.predicate, shared)
    placement = world.variation.choose(placements, attempt)
    flat = is_flat(world, name)
    grasps = [] if flat else find_grasps(world, name, placement.position)
    for _ in range(0 if flat or attempt >= MAX_PUSHES else MAX_PUSHES):
        if any(g.cost < 1 for g in grasps) or not (yield from make_room(world, name, placement.position)):
            break
        grasps = find_grasps(world, name, placement.position)
    if not any(grasp.cost < 1 for grasp in grasps):
        if can_slide(world, name, place_name):
            return (yield from slide(world, name, placement.position, done))
        grasps = rim_grasps(world, name, placement.position)
    grasp = world.variation.choose(grasps, attempt)
    if not (yield from pick(world, name, grasp)):
        return False
    return (yield from place(world, name, placement.position, placement.drop, done, grasp.rotation))
