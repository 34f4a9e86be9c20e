"""The tasks of the tabletop suites: one per container that is named, with one sentence per initial state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.envs.tabletop.layouts import (
    CONTAINER_SETS,
    LAYOUTS,
    containers_of,
    move_sentence,
    scene_spec,
)
from apt_bench.envs.tabletop.robots import ROBOTS
from apt_bench.suites import Cell, Task

INITS = 1000
TRAIN_INITS = 1_000_000

_SPLITS = ("seen", "unseen")
_CHOICES: dict[str, tuple[str, ...]] = {
    "layout": tuple(LAYOUTS),
    "items": _SPLITS,
    "containers": tuple(CONTAINER_SETS),
    "surroundings": _SPLITS,
    "roles": _SPLITS,
    "split": ("train",),
    "robot": tuple(ROBOTS),
}
_OTHER_ARGS = ("ambiguity", "stages", "chain", "disturbance")


def cell_tasks(cell: Cell) -> list[Task]:
    """Return the tasks of a cell. Raises UserError for arguments that do not define a tabletop scene."""
    check_args(cell)
    if cell.args["layout"] == "storage":
        return [_task(cell, name, _storage_template(cell, name)) for name in ("red_plate", "blue_plate")]
    return [
        _task(cell, f"to_{c.replace(' ', '_')}", move_sentence("{item}", c), c)
        for c in containers_of(cell.args)
    ]


def check_args(cell: Cell) -> None:
    """Raise UserError where the arguments of a cell do not define a tabletop scene."""
    where, args = f"Cell '{cell.name}'", cell.args
    for name, value in args.items():
        if name not in (*_CHOICES, *_OTHER_ARGS):
            raise UserError(
                f"{where}: unknown argument '{name}'. {did_you_mean(name, (*_CHOICES, *_OTHER_ARGS))}"
            )
        if name in _CHOICES and value not in _CHOICES[name]:
            raise UserError(f"{where}: no {name} '{value}'. {did_you_mean(str(value), _CHOICES[name])}")
    if "layout" not in args:
        raise UserError(f"{where}: args need a layout. Known: {', '.join(LAYOUTS)}.")
    share, push = args.get("ambiguity"), args.get("disturbance", 0)
    if args["layout"] == "table" and args.get("split") == "train" and not _within(share, 0, 1):
        raise UserError(f"{where}: args need an ambiguity between 0 and 1, not {share!r}.")
    if not _within(push, 0, 2):
        raise UserError(f"{where}: the disturbance must be between 0 and 2, not {push!r}.")
    stages = args.get("stages", ("store",))
    if not isinstance(stages, (list, tuple)) or any(s not in ("store", "plate") for s in stages):
        raise UserError(f"{where}: stages must be a list of store and plate, not {stages!r}.")


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _task(cell: Cell, name: str, template: str, container: str | None = None) -> Task:
    def prompts_of(init: int, seed: int) -> Mapping[str, str]:
        keys = ("text", "second")  # the first instruction and, in coaching, the next one
        return dict(zip(keys, scene_spec(cell.args, name, init, seed).instructions, strict=False))

    return Task(
        name=name,
        prompts={"text": template},
        args=cell.args,
        group=f"tabletop:{cell.args.get('robot', 'panda')}",
        inits=TRAIN_INITS if cell.args.get("split") == "train" else INITS,
        prompts_of=prompts_of,
        container=container,
    )


def _storage_template(cell: Cell, name: str) -> str:
    sentences = {
        "store": "Put the {item} in the storage box and close it.",
        "plate": f"Place the {{item}} on the {name.replace('_', ' ')}.",
    }
    return " / ".join(sentences[s] for s in cell.args.get("stages", sentences))
