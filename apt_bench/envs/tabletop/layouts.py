"""How scenes are composed: which things, where, and what is asked. One function per layout of the suites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from apt_bench.envs.tabletop.catalog import CONTAINERS, ITEMS, Item, Surroundings, items, surroundings
from apt_bench.envs.tabletop.specs import (
    Draw,
    Placed,
    SceneSpec,
    Stage,
    cycle,
    draw_others,
    draw_view,
    place,
)

ITEMS_PER_SCENE = 4
JOINT_NOISE = 0.05
"""rad, per joint, about the home pose."""

SEEN_CONTAINERS, UNSEEN_CONTAINERS = ("plate", "bowl"), ("plate", "mug")
"""The containers of a scene; in `unseen` the plate is still asked for half the time, as in the paper's UC."""


def containers_of(args: Mapping[str, Any]) -> tuple[str, ...]:
    """The containers that a cell asks for: one task each."""
    return UNSEEN_CONTAINERS if args.get("containers") == "unseen" else SEEN_CONTAINERS


def move_sentence(alias: str, container: str) -> str:
    """The instruction of the pick-place suites."""
    return f"Move the {alias} to the {container}."


def table(args: Mapping[str, Any], task: str, init: int, seed: int, draw: Draw) -> SceneSpec:
    """Four items and two containers with room between them."""
    container = CONTAINERS[task.removeprefix("to_")]
    target = _target(args, task, init, seed)
    if args.get("split") == "train" and not draw.chance(args["ambiguity"]):
        others = draw_others(draw, [target], items("seen", target=False), ITEMS_PER_SCENE - 1)
        second = "tray"
    else:
        others = _others(args, draw, target)
        second = next(c for c in containers_of(args) if c != container.name)
    placed: list[Placed] = []
    for name in (container.name, second, *(i.name for i in (target, *others))):
        placed.append(place(draw, name, placed))
    stage = Stage(
        move_sentence(draw.pick(target.aliases), container.name),
        ((container.predicate, target.name, container.name),),
    )
    return SceneSpec(tuple(placed[2:]), tuple(placed[:2]), *_frame(args, draw), stages=(stage,))


def _target(args: Mapping[str, Any], task: str, init: int, seed: int) -> Item:
    """Every target of the split comes equally often."""
    names = [i.name for i in items(args.get("items", "seen"), target=True)]
    return ITEMS[cycle(names, init, dict(args), task, seed)]


def _others(args: Mapping[str, Any], draw: Draw, target: Item) -> list[Item]:
    """Three more things, at least one of which training rewarded moving: to look alone is not enough."""
    seen = items("seen", target=True)
    lure = draw_others(draw, [target], seen, 1)
    split = args.get("items", "seen")
    pool = items(split, target=True) + items(split, target=False)
    return lure + draw_others(draw, [target, *lure], pool, ITEMS_PER_SCENE - 2)


def _frame(args: Mapping[str, Any], draw: Draw) -> tuple[str, Any, tuple[float, ...]]:
    """Surroundings, camera and the arm's start."""
    choices: list[Surroundings] = surroundings(args.get("surroundings", "seen"))
    joints = tuple(draw.number(-JOINT_NOISE, JOINT_NOISE) for _ in range(7))
    return draw.pick(choices).name, draw_view(draw), joints


LAYOUTS: dict[str, Callable[[Mapping[str, Any], str, int, int, Draw], SceneSpec]] = {"table": table}
