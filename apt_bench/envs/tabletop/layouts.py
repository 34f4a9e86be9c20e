"""Compose scenes: which objects, their positions and the subtasks. One function per layout of the suites."""

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
    Container,
    Item,
    conflict,
    items,
)
from apt_bench.envs.tabletop.item_shapes import shape_of
from apt_bench.envs.tabletop.scene_spec import (
    BOX,
    Draw,
    NoRoom,
    Placed,
    SceneKey,
    SceneSpec,
    Subtask,
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
"""Largest offset (rad) of each joint from the home pose."""

HALF_TURN = 3.1416
ROUND_MORE = 0.006
"""m by which round objects look wider than their collision box."""

CONTAINER_SETS = {
    "seen": ("plate", "bowl"),
    "unseen": ("plate", "mug"),
    "seen4": ("plate", "bowl", "tray", "red plate"),
    "seen6": ("plate", "bowl", "tray", "red plate", "white bowl", "pot"),
}
"""Value of a cell's argument `containers` -> the containers that its instructions name. A scene has two of them. In
`unseen`, half of the tasks still name the plate, as in the paper's UC. `seen4` and `seen6` are for training on more
containers; no shipped suite uses them."""


def containers_of(args: Mapping[str, Any]) -> tuple[str, ...]:
    """The containers that a cell's instructions name: one task each."""
    return CONTAINER_SETS[args.get("containers", "seen")]


def _second(args: Mapping[str, Any], draw: Draw, named: str) -> str:
    """The other container of a scene: one whose name does not contain the named one, nor the reverse."""
    others = [c for c in containers_of(args) if c not in named and named not in c]
    return others[0] if len(others) == 1 else draw.pick(others)


def move_sentence(alias: str, container: str) -> str:
    """The instruction of the pick-place suites."""
    return f"Move the {alias} to the {container}."


def table(args: Mapping[str, Any], key: SceneKey, draw: Draw) -> SceneSpec:
    """Four items and two containers with free space between them."""
    container = CONTAINERS[key.task.removeprefix("to_").replace("_", " ")]
    target = _target(args, key)
    if not ambiguous(args, key):
        others = draw_others(draw, [target], items("seen", target=False), ITEMS_PER_SCENE - 1)
        second = "tray"
    else:
        others = _others(args, draw, target)
        second = _second(args, draw, container.name)
    placed: list[Placed] = []
    for name in (container.name, second, *(i.name for i in (target, *others))):
        placed.append(place(draw, name, placed))
    subtask = _move(draw, target, container)
    return SceneSpec(tuple(placed[2:]), tuple(placed[:2]), *_frame(args, draw), (subtask,))


def _move(draw: Draw, target: Item, container: Container) -> Subtask:
    """Move the target, under a random one of its names, to the container."""
    sentence = move_sentence(draw.pick(target.aliases), container.name)
    return Subtask(sentence, ((container.predicate, target.name, container.name),))


def ambiguous(args: Mapping[str, Any], key: SceneKey) -> bool:
    """Return whether an instruction could name more than one item and more than one container of the scene.

    This is always so in an evaluation. In training it is so in a fraction of the scenes; in the others the image alone
    determines the task."""
    return (
        args.get("split") != "train"
        or args["layout"] != "table"
        or key.draw("ambiguous").chance(args["ambiguity"])
    )


def _target(args: Mapping[str, Any], key: SceneKey) -> Item:
    """Choose the target. Every target of the split comes equally often."""
    names = [i.name for i in items(args.get("items", "seen"), target=True)]
    return ITEMS[key.cycle(names)]


def _others(args: Mapping[str, Any], draw: Draw, target: Item) -> list[Item]:
    """Draw three more items. At least one is a seen target, so the image alone does not determine the task."""
    seen = items("seen", target=True)
    distractor = draw_others(draw, [target], seen, 1)
    split = args.get("items", "seen")
    pool = items(split, target=True) + items(split, target=False)
    return distractor + draw_others(draw, [target, *distractor], pool, ITEMS_PER_SCENE - 2)


def _frame(args: Mapping[str, Any], draw: Draw) -> tuple[str, Any, tuple[float, ...]]:
    """Draw the surroundings, the camera and the arm's joint offsets."""
    choices: list[Surroundings] = surroundings(args.get("surroundings", "seen"))
    joints = tuple(draw.number(-JOINT_NOISE, JOINT_NOISE) for _ in range(7))
    return draw.pick(choices).name, draw_view(draw), joints


def clutter(args: Mapping[str, Any], key: SceneKey, draw: Draw) -> SceneSpec:
    """Four items: the target in the middle of a cluster, with neighbours at two or three of its sides."""
    container = CONTAINERS[key.task.removeprefix("to_").replace("_", " ")]
    target = _target(args, key)
    others = _others(args, draw, target)
    second = _second(args, draw, container.name)
    yaw = draw.number(-0.5, 0.5)
    middle = Placed(target.name, draw.number(-0.20, 0.04), draw.number(-0.20, 0.20), yaw)
    # The two sides where the fingers would go are always blocked.
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
    subtask = _move(draw, target, container)
    return SceneSpec((*cluster, *rest), tuple(containers), *_frame(args, draw), (subtask,))


TOUCHING = 0.001
"""Visible gap (m) between neighbours in a cluster."""


def _beside(draw: Draw, middle: Placed, name: str, side: tuple[int, int]) -> Placed:
    """Place an item against one side of the middle item, slightly off its centre line."""
    (ax, ay), (bx, by) = _extent(middle.name), _extent(name)
    along = (ax + bx if side[0] else ay + by) + TOUCHING
    slide = draw.number(-0.012, 0.012)
    dx, dy = (side[0] * along, slide) if side[0] else (slide, side[1] * along)
    c, s = cos(middle.yaw), sin(middle.yaw)
    return Placed(
        name, round(middle.x + c * dx - s * dy, 4), round(middle.y + s * dx + c * dy, 4), middle.yaw
    )


def _extent(name: str) -> tuple[float, float]:
    """Visible half sizes (m) from above. Round objects look wider than their collision box."""
    shape = shape_of(ITEMS[name])
    more = ROUND_MORE if shape.round else 0.0
    return shape.half[0] + more, shape.half[1] + more


def _overlap(a: Placed, b: Placed) -> bool:
    """Return whether the visible shapes of two neighbours with the same yaw overlap."""
    c, s = cos(a.yaw), sin(a.yaw)
    dx, dy = c * (b.x - a.x) + s * (b.y - a.y), -s * (b.x - a.x) + c * (b.y - a.y)
    (ax, ay), (bx, by) = _extent(a.name), _extent(b.name)
    return abs(dx) < ax + bx and abs(dy) < ay + by


def storage(args: Mapping[str, Any], key: SceneKey, draw: Draw) -> SceneSpec:
    """An open storage box, two plates and three items.

    `args["stages"]`: the subtasks, of `store` (T1) and `plate` (T2). `args["chain"]`: one instruction for all of them.
    `args["roles"]`: `unseen` plates the items that training stores, and stores those that training plates."""
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
    store = Subtask(
        f"Put the {alias} in the storage box and close it.", (("in", first.name, BOX), ("close", BOX))
    )
    put = Subtask(f"Place the {alias2} on the {plate.name}.", (("on", then.name, plate.name),))
    subtasks = tuple({"store": store, "plate": put}[s] for s in args.get("stages", ("store", "plate")))
    return SceneSpec(
        tuple(placed[4:]),
        tuple(placed[2:4]),
        *_frame(args, draw),
        subtasks,
        box=box,
        chained=bool(args.get("chain")),
    )


LAYOUTS: dict[str, Callable[[Mapping[str, Any], SceneKey, Draw], SceneSpec]] = {
    "table": table,
    "clutter": clutter,
    "storage": storage,
}


def scene_spec(args: Mapping[str, Any], task: str, init: int, seed: int) -> SceneSpec:
    """The scene of one episode: task `task` and initial state `init` (0, 1, ...) of a cell with these arguments."""
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
    raise RuntimeError(
        f"found no layout for initial state {init} of task {task} with {args} in 10,000 attempts"
    )
