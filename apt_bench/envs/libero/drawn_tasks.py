"""LIBERO's scenes with drawn layouts and drawn targets: training data in which the instruction is needed.

In LIBERO's own demonstrations of most suites, vision alone determines the task. Here any movable object of a
LIBERO-Object scene may be the target, a bowl of LIBERO-Spatial may be in any relation, and LIBERO-Goal's places take
any object that fits, in layouts that are drawn anew for each episode (`drawn_layouts`).
"""

from __future__ import annotations

from collections.abc import Mapping
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
    "porcelain_mug": ("white mug", "mug"),
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

    `cell.args["benchmark"]` is `libero_object`, `libero_spatial` or `libero_goal`. `cell.args["disturbance"]`, where it
    is given, is the strength of random pushes against the arm (`envs.disturbance`). `cell.args["draft"]` renders images
    without multisampling.

    Raises UserError for other arguments.
    """
    made = {
        "libero_object": _object_tasks,
        "libero_spatial": _spatial_tasks,
        "libero_goal": _goal_tasks,
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
