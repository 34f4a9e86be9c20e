"""How scenes are composed: which things, where, and what is asked. One function per layout of the suites."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import cos, sin
from typing import Any

from apt_bench.envs.tabletop.catalog import (
    CONTAINERS,
    ITEMS,
    PLATED,
    STORED,
    Item,
    conflict,
    items,
)
from apt_bench.envs.tabletop.shapes import shape_of
from apt_bench.envs.tabletop.specs import (
    BOX,
    Draw,
    NoRoom,
    Placed,
    SceneKey,
    SceneSpec,
    Stage,
    check_view,
    draw_others,
    draw_view,
    open_lid,
    place,
    scene_key,
    within_reach,
)
from apt_bench.envs.tabletop.surroundings import Surroundings, surroundings

ITEMS_PER_SCENE = 4
JOINT_NOISE = 0.05
"""rad, per joint, about the home pose."""

HALF_TURN = 3.1416
ROUND_MORE = 0.006
"""m by which round things look wider than their collision box."""

SEEN_CONTAINERS, UNSEEN_CONTAINERS = ("plate", "bowl"), ("plate", "mug")
"""The containers of a scene; in `unseen` the plate is still asked for half the time, as in the paper's UC."""


def containers_of(args: Mapping[str, Any]) -> tuple[str, ...]:
    """The containers that a cell asks for: one task each."""
    return UNSEEN_CONTAINERS if args.get("containers") == "unseen" else SEEN_CONTAINERS


def move_sentence(alias: str, container: str) -> str:
    """The instruction of the pick-place suites."""
    return f"Move the {alias} to the {container}."


def table(args: Mapping[str, Any], key: SceneKey, draw: Draw) -> SceneSpec:
    """Four items and two containers with room between them."""
    container = CONTAINERS[key.task.removeprefix("to_")]
    target = _target(args, key)
    if not ambiguous(args, key):
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
    return SceneSpec(
        tuple(placed[2:]), tuple(placed[:2]), *_frame(args, draw), stages=(stage,), parts=(stage.goal,)
    )


def ambiguous(args: Mapping[str, Any], key: SceneKey) -> bool:
    """Whether more than one item and more than one container of the scene may be asked for. Always in an evaluation;
    in training only in a share of the scenes, elsewhere vision alone gives the task away."""
    return (
        args.get("split") != "train"
        or args["layout"] != "table"
        or key.draw("ambiguous").chance(args["ambiguity"])
    )


def _target(args: Mapping[str, Any], key: SceneKey) -> Item:
    """Every target of the split comes equally often."""
    names = [i.name for i in items(args.get("items", "seen"), target=True)]
    return ITEMS[key.cycle(names)]


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


def clutter(args: Mapping[str, Any], key: SceneKey, draw: Draw) -> SceneSpec:
    """Four items in a cluster, the target in the middle with neighbours against two or three of its sides."""
    container = CONTAINERS[key.task.removeprefix("to_")]
    target = _target(args, key)
    others = _others(args, draw, target)
    second = next(c for c in containers_of(args) if c != container.name)
    yaw = draw.number(-0.5, 0.5)
    middle = Placed(target.name, draw.number(-0.20, 0.04), draw.number(-0.20, 0.20), yaw)
    # Across its narrow side, where the fingers would go, it is always blocked.
    sides = [*draw.shuffled([(0, 1), (0, -1)]), draw.pick([(1, 0), (-1, 0)])]
    placed = [middle]
    neighbours = draw.pick((2, 3))
    for other, side in zip(others[:neighbours], sides, strict=False):
        spot = _beside(draw, middle, other.name, side)
        if not within_reach(spot.x, spot.y) or any(_overlap(spot, p) for p in placed[1:]):
            raise NoRoom
        placed.append(spot)
    cluster = list(placed)
    for name in (container.name, second, *(o.name for o in others[neighbours:])):
        placed.append(place(draw, name, placed))
    containers, rest = placed[len(cluster) : len(cluster) + 2], placed[len(cluster) + 2 :]
    stage = Stage(
        move_sentence(draw.pick(target.aliases), container.name),
        ((container.predicate, target.name, container.name),),
    )
    return SceneSpec(
        (*cluster, *rest), tuple(containers), *_frame(args, draw), stages=(stage,), parts=(stage.goal,)
    )


TOUCHING = 0.001
"""m of air between neighbours in a cluster, as seen."""


def _beside(draw: Draw, middle: Placed, name: str, side: tuple[int, int]) -> Placed:
    """Against one side of the middle item, a little off its centre line."""
    (ax, ay), (bx, by) = _extent(middle.name), _extent(name)
    along = (ax + bx if side[0] else ay + by) + TOUCHING
    slide = draw.number(-0.012, 0.012)
    dx, dy = (side[0] * along, slide) if side[0] else (slide, side[1] * along)
    c, s = cos(middle.yaw), sin(middle.yaw)
    return Placed(
        name, round(middle.x + c * dx - s * dy, 4), round(middle.y + s * dx + c * dy, 4), middle.yaw
    )


def _extent(name: str) -> tuple[float, float]:
    """Half sizes (m) as seen, from above; round things look wider than their collision box."""
    shape = shape_of(ITEMS[name])
    more = ROUND_MORE if shape.round else 0.0
    return shape.half[0] + more, shape.half[1] + more


def _overlap(a: Placed, b: Placed) -> bool:
    """Whether two neighbours of one yaw overlap as seen."""
    c, s = cos(a.yaw), sin(a.yaw)
    dx, dy = c * (b.x - a.x) + s * (b.y - a.y), -s * (b.x - a.x) + c * (b.y - a.y)
    (ax, ay), (bx, by) = _extent(a.name), _extent(b.name)
    return abs(dx) < ax + bx and abs(dy) < ay + by


def storage(args: Mapping[str, Any], key: SceneKey, draw: Draw) -> SceneSpec:
    """An open storage box, two plates and three items. `args["stages"]`: which of store (T1) and plate (T2) are asked
    for; `args["chain"]`: both in one sentence; `args["roles"]`: unseen = what training stored is plated, and the other
    way round."""
    plate = CONTAINERS[key.task.replace("_", " ")]
    second = "blue plate" if plate.name == "red plate" else "red plate"
    stored, plated = (STORED, PLATED) if args.get("roles", "seen") == "seen" else (PLATED, STORED)
    first = ITEMS[key.cycle(stored, "store")]
    then = ITEMS[key.cycle(plated, "plate")]
    if conflict(first, then):
        then = draw_others(draw, [first], [ITEMS[n] for n in plated], 1)[0]
    small = [ITEMS[n] for n in (*STORED, *PLATED)]
    third = draw_others(draw, [first, then], small, 1)[0]
    side = draw.pick((-1, 1))
    box = Placed(
        BOX,
        draw.number(-0.18, -0.06),
        round(side * draw.number(0.13, 0.17), 4),
        0.0 if side > 0 else HALF_TURN,
    )
    placed = [box, open_lid(box)]
    for name in (plate.name, second, first.name, then.name, third.name):
        placed.append(place(draw, name, placed))
    alias, alias2 = draw.pick(first.aliases), draw.pick(then.aliases)
    store = Stage(
        f"Put the {alias} in the storage box and close it.", (("in", first.name, BOX), ("close", BOX))
    )
    put = Stage(f"Place the {alias2} on the {plate.name}.", (("on", then.name, plate.name),))
    stages = tuple({"store": store, "plate": put}[s] for s in args.get("stages", ("store", "plate")))
    parts = tuple(s.goal for s in stages)
    if args.get("chain"):
        sentence = f"{store.instruction[:-1]}, then p{put.instruction[1:]}"
        stages = (Stage(sentence, store.goal + put.goal),)
    return SceneSpec(
        tuple(placed[4:]), tuple(placed[2:4]), *_frame(args, draw), stages=stages, parts=parts, box=box
    )


LAYOUTS: dict[str, Callable[[Mapping[str, Any], SceneKey, Draw], SceneSpec]] = {
    "table": table,
    "clutter": clutter,
    "storage": storage,
}


def scene_spec(args: Mapping[str, Any], task: str, init: int, seed: int) -> SceneSpec:
    """The scene of one episode: of task `task`, initial state `init` (0, 1, ...), in a cell with these arguments."""
    return _scene_spec(json.dumps(dict(args), sort_keys=True), task, init, seed)


@lru_cache(maxsize=4096)
def _scene_spec(args: str, task: str, init: int, seed: int) -> SceneSpec:
    options = json.loads(args)
    key = scene_key(options, task, init, seed)
    for attempt in range(10_000):
        try:
            spec = LAYOUTS[options["layout"]](options, key, key.draw(attempt))
            check_view(spec)
            return spec
        except NoRoom:
            continue
    raise RuntimeError(f"no room for scene {init} of {task} with {args}")
