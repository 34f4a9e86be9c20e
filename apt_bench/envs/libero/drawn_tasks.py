"""LIBERO's scenes with drawn layouts and drawn targets: training data in which the instruction is needed.

In LIBERO's own demonstrations of most suites, vision alone determines the task. Here any movable object of a
LIBERO-Object scene may be the target, a bowl of LIBERO-Spatial may be in any relation, and the places of LIBERO-Goal
and LIBERO-Long take any object that fits, in layouts that are drawn anew for each episode (`drawn_layouts`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, permutations, product
from typing import Any

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.envs.libero.bddl import read_bddl
from apt_bench.envs.libero.tasks import bddl_path, manifest
from apt_bench.suites import Cell, Task

INITS = 100_000
"""Layouts of each task."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "akita_black_bowl": ("black bowl", "akita black bowl", "bowl"),
    "glazed_rim_porcelain_ramekin": ("ramekin",),
    "cookies": ("cookie box", "cookies box", "cookies"),
    "cream_cheese": ("cream cheese", "cream cheese box"),
    "chefmate_8_frypan": ("frying pan", "pan"),
    "wooden_cabinet": ("wooden cabinet", "cabinet"),
    "white_cabinet": ("white cabinet", "cabinet"),
    "flat_stove": ("stove",),
    "porcelain_mug": ("white mug",),
    "red_coffee_mug": ("red mug", "red coffee mug"),
    "white_yellow_mug": ("yellow and white mug", "white and yellow mug"),
    "wine_bottle": ("wine bottle", "bottle"),
    "wine_rack": ("wine rack", "rack"),
    "black_book": ("book", "black book"),
    "desk_caddy": ("caddy", "desk caddy"),
}
"""Names of categories in sentences, the usual one first, where they differ from the category itself."""

RELATIONS: Mapping[str, tuple[str, ...]] = {
    "between the plate and the ramekin": ("between the plate and the ramekin",),
    "next to the ramekin": ("next to the ramekin",),
    "from table center": ("from table center",),
    "on the cookie box": ("on the cookie box", "on the cookies box"),
    "in the top drawer of the wooden cabinet": (
        "in the top drawer of the wooden cabinet",
        "in the top layer of the wooden cabinet",
    ),
    "on the ramekin": ("on the ramekin",),
    "next to the cookie box": ("next to the cookie box", "next to the cookies box"),
    "on the stove": ("on the stove",),
    "next to the plate": ("next to the plate",),
    "on the wooden cabinet": (
        "on the wooden cabinet",
        "on the top of the cabinet",
        "on the top of the wooden cabinet",
    ),
}
"""Relations of LIBERO-Spatial, with the phrases that name them."""


def names(category: str) -> tuple[str, ...]:
    """Names of a category, the usual one first: `akita_black_bowl` -> `black bowl`, ..."""
    return NAMES.get(category, (category.replace("_", " "),))


def cell_tasks(cell: Cell) -> list[Task]:
    """Return the tasks of a cell.

    `cell.args["benchmark"]` is `libero_object`, `libero_spatial`, `libero_goal` or `libero_10`.
    `cell.args["disturbance"]`, where it is given, is the strength of random pushes against the arm
    (`envs.disturbance`). `cell.args["draft"]` renders images without multisampling.

    Raises UserError for other arguments.
    """
    made = {
        "libero_object": _object_tasks,
        "libero_spatial": _spatial_tasks,
        "libero_goal": _goal_tasks,
        "libero_10": _long_tasks,
    }
    name = str(cell.args.get("benchmark"))
    if name not in made:
        raise UserError(
            f"Cell '{cell.name}': no drawn layouts for benchmark '{name}'. {did_you_mean(name, made)}"
        )
    extra = {k: v for k, v in cell.args.items() if k != "benchmark"}
    push = extra.get("disturbance", 0.0)
    if (
        set(extra) - {"disturbance", "draft"}
        or not isinstance(push, int | float)
        or not 0 <= push <= 2
        or not isinstance(extra.get("draft", False), bool)
    ):
        raise UserError(
            f"Cell '{cell.name}': args take benchmark, disturbance from 0 to 2, and draft: true or false; found "
            f"{dict(cell.args)}."
        )
    return made[name](name, extra)


def _object_tasks(benchmark: str, extra: Mapping[str, Any]) -> list[Task]:
    """In each of LIBERO-Object's ten scenes, every grocery into the basket."""
    tasks = []
    for scene in manifest()["benchmarks"][benchmark]["tasks"]:
        for name, category in read_bddl(bddl_path(benchmark, scene["name"])).objects.items():
            if category == "basket":
                continue
            thing = names(category)[0]
            tasks.append(
                _task(
                    f"{scene['name']}__{category}",
                    scene,
                    [f"{verb} the {thing} and place it in the basket" for verb in ("pick up", "pick")],
                    {
                        "benchmark": benchmark,
                        "base": benchmark,
                        "task": scene["name"],
                        "goal": [["in", name, "basket_1_contain_region"]],
                        "layout": "basket",
                        **extra,
                    },
                )
            )
    return tasks


def _spatial_tasks(benchmark: str, extra: Mapping[str, Any]) -> list[Task]:
    """A bowl in each relation to the plate, beside another bowl in any other relation."""
    scene = manifest()["benchmarks"][benchmark]["tasks"][0]
    tasks = []
    for target, phrases in RELATIONS.items():
        for other in RELATIONS:
            if other != target:
                sentences = [
                    f"{start} {phrase} and place it on the plate"
                    for phrase in phrases
                    for start in ("pick up the black bowl", "pick the akita black bowl")
                ]
                args = {
                    "benchmark": benchmark,
                    "base": benchmark,
                    "task": scene["name"],
                    "goal": [["on", "akita_black_bowl_1", "plate_1"]],
                    "layout": "bowls",
                    "wanted": {"target": target, "other": other},
                    **extra,
                }
                name = f"{target}__{other}".replace(" ", "_")
                tasks.append(_task(name, scene, sentences, args))
    return tasks


def _goal_tasks(benchmark: str, extra: Mapping[str, Any]) -> list[Task]:
    """What LIBERO-Goal's ten sentences say, with any object that its place takes."""
    scene = manifest()["benchmarks"][benchmark]["tasks"][0]
    bowl, plate, cheese, bottle = ("akita_black_bowl", "plate", "cream_cheese", "wine_bottle")
    drawn: list[tuple[str, list[str], list[str], tuple[str, ...]]] = []
    for place, goal, objects, phrases in (
        ("on_the_stove", "flat_stove_1_cook_region", (bowl, plate, cheese, bottle), ("on the stove",)),
        (
            "on_top_of_the_cabinet",
            "wooden_cabinet_1_top_side",
            (bowl, plate, cheese, bottle),
            ("on top of the cabinet", "on the top of the drawer"),
        ),
        ("in_the_bowl", f"{bowl}_1", (cheese, bottle), ("in the bowl", "on the bowl")),
        ("on_the_plate", f"{plate}_1", (bowl, cheese, bottle), ("on the plate",)),
        ("on_the_rack", "wine_rack_1_top_region", (bottle, cheese), ("on the rack",)),
    ):
        for thing in objects:
            sentences = [f"put the {_short(thing)} {phrase}" for phrase in phrases]
            drawn.append((f"{thing}__{place}", sentences, ["on", f"{thing}_1", goal], ()))
    for drawer in ("top", "middle", "bottom"):
        region = f"wooden_cabinet_1_{drawer}_region"
        sentences = [f"open the {drawer} drawer of the cabinet", f"open the {drawer} layer of the drawer"]
        drawn.append((f"open_the_{drawer}_drawer", sentences, ["open", region], ("wooden_cabinet_1",)))
    for thing in (bowl, cheese):
        sentences = [
            f"open the top {name} and put the {_short(thing)} inside"
            for name in ("drawer", "layer of the drawer")
        ]
        goal_atom = ["in", f"{thing}_1", "wooden_cabinet_1_top_region"]
        drawn.append((f"{thing}__in_the_top_drawer", sentences, goal_atom, ("wooden_cabinet_1",)))
    for thing in (plate, cheese):
        sentences = [f"push the {_short(thing)} to the front of the stove"]
        goal_atom = ["on", f"{thing}_1", "main_table_stove_front_region"]
        drawn.append((f"{thing}__to_the_front_of_the_stove", sentences, goal_atom, ("flat_stove_1",)))
    drawn.append(("turn_on_the_stove", ["turn on the stove"], ["turnon", "flat_stove_1"], ()))
    return [
        _task(
            name,
            scene,
            sentences,
            {
                "benchmark": benchmark,
                "base": benchmark,
                "task": scene["name"],
                "goal": [atom],
                "layout": "kitchen",
                "wanted": {"clear": list(clear)},
                **extra,
            },
        )
        for name, sentences, atom, clear in drawn
    ]


def _long_tasks(benchmark: str, extra: Mapping[str, Any]) -> list[Task]:
    """What the sentences of LIBERO-Long say, with any object and place of the scene that fits."""
    scenes = {_scene(s["name"]): s for s in reversed(manifest()["benchmarks"][benchmark]["tasks"])}
    return [
        _task(
            f"{scene}__{name}",
            scenes[scene],
            sentences,
            {
                "benchmark": benchmark,
                "base": benchmark,
                "task": scenes[scene]["name"],
                "goal": goal,
                "layout": scene,
                "wanted": {"first": list(first)} if first else {},
                **extra,
            },
        )
        for scene, name, sentences, goal, *first in (
            *_baskets(benchmark, scenes),
            *_plates(),
            *_stoves(),
            *_covered_places(),
            *_caddy(),
        )
    ]


def _scene(task: str) -> str:
    """Name of a LIBERO-Long task's scene: `kitchen_scene3`."""
    end = task.index("SCENE") + len("SCENE0")
    return task[:end].lower()


Drawn = tuple[Any, ...]
"""A task of LIBERO-Long: scene, name, sentences, goal, and the objects that are placed first."""


def _baskets(benchmark: str, scenes: Mapping[str, Mapping[str, Any]]) -> Iterator[Drawn]:
    for scene in ("living_room_scene1", "living_room_scene2"):
        objects = read_bddl(bddl_path(benchmark, scenes[scene]["name"])).objects
        for pair in combinations(sorted(c for c in objects.values() if c != "basket"), 2):
            sentences = [
                f"put both the {a} and the {b} in the basket"
                for one, other in (pair, pair[::-1])
                for a, b in product(names(one), names(other))
            ]
            goal = [["in", f"{c}_1", "basket_1_contain_region"] for c in pair]
            yield scene, "__".join(pair), sentences, goal


def _plates() -> Iterator[Drawn]:
    mugs = {c: names(c)[0] for c in ("porcelain_mug", "red_coffee_mug", "white_yellow_mug")}
    for left, right in permutations(mugs, 2):
        sentence = f"put the {mugs[left]} on the left plate and put the {mugs[right]} on the right plate"
        goal = [["on", f"{left}_1", "plate_1"], ["on", f"{right}_1", "plate_2"]]
        yield "living_room_scene5", f"{left}__{right}", [sentence], goal
    for mug, side in product(("porcelain_mug", "red_coffee_mug"), ("left", "right")):
        sentence = (
            f"put the {mugs[mug]} on the plate and put the chocolate pudding to the {side} of the plate"
        )
        beside = f"living_room_table_plate_{side}_region"
        goal = [["on", f"{mug}_1", "plate_1"], ["on", "chocolate_pudding_1", beside]]
        yield "living_room_scene6", f"{mug}__pudding_{side}", [sentence], goal, "plate_1"


def _stoves() -> Iterator[Drawn]:
    lit, burner = ["turnon", "flat_stove_1"], "flat_stove_1_cook_region"
    yield "kitchen_scene3", "turn_on", ["turn on the stove"], [lit]
    for thing in ("moka_pot", "chefmate_8_frypan"):
        on = ["on", f"{thing}_1", burner]
        both = [f"turn on the stove and put the {name} on it" for name in names(thing)]
        yield "kitchen_scene3", f"turn_on__{thing}", both, [lit, on]
        yield "kitchen_scene3", thing, [f"put the {name} on the stove" for name in names(thing)], [on]
    pots = {"right": ["on", "moka_pot_1", burner], "left": ["on", "moka_pot_2", burner]}
    yield "kitchen_scene8", "both", ["put both moka pots on the stove"], [*pots.values(), lit]
    for side, on in pots.items():
        yield "kitchen_scene8", side, [f"put the {side} moka pot on the stove"], [on, lit]


def _covered_places() -> Iterator[Drawn]:
    """Into the drawer, which is open at the start, and into the microwave."""
    place, region = "bottom drawer of the cabinet", "white_cabinet_1_bottom_region"
    bowl, bottle = (["in", f"{c}_1", region] for c in ("akita_black_bowl", "wine_bottle"))
    shut = [f"put the black bowl in the {place} and close it"]
    yield "kitchen_scene4", "bowl__close", shut, [bowl, ["close", region]], "akita_black_bowl_1"
    yield "kitchen_scene4", "bowl", [f"put the black bowl in the {place}"], [bowl]
    # Without closing: the scripted expert cannot close the drawer over the bottle (docs/oracle.md).
    yield "kitchen_scene4", "bottle", [f"put the {n} in the {place}" for n in names("wine_bottle")], [bottle]
    yield "kitchen_scene4", "close", [f"close the {place}"], [["close", region]]
    for mug in ("porcelain_mug", "white_yellow_mug"):
        sentence = f"put the {names(mug)[0]} in the microwave and close it"
        goal = [["in", f"{mug}_1", "microwave_1_heating_region"], ["close", "microwave_1"]]
        yield "kitchen_scene6", f"{mug}__close", [sentence], goal
    yield "kitchen_scene6", "close", ["close the microwave"], [["close", "microwave_1"]]


def _caddy() -> Iterator[Drawn]:
    for thing, said in (("black_book", ("book",)), ("white_yellow_mug", ("yellow and white mug", "cup"))):
        for side in ("back", "front", "left", "right"):
            sentences = [
                f"pick up the {name} and place it in the {side} compartment of the caddy" for name in said
            ]
            goal = [["in", f"{thing}_1", f"desk_caddy_1_{side}_contain_region"]]
            yield "study_scene1", f"{thing}__{side}", sentences, goal


def _short(category: str) -> str:
    """The name of a category that LIBERO-Goal's sentences use: there is one bowl only."""
    return "bowl" if category == "akita_black_bowl" else names(category)[0]


def _task(name: str, scene: Mapping[str, Any], sentences: list[str], args: dict[str, Any]) -> Task:
    """A task whose episodes take turns in the wording of the sentence."""
    return Task(
        name=name,
        prompts={"text": sentences[0]},
        args=args,
        group=scene["group"],
        inits=INITS,
        prompts_of=lambda init, seed: {"text": sentences[(init + seed) % len(sentences)]},
    )
