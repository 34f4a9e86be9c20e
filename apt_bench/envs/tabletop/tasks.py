"""The tasks of the tabletop suites' cells: one per container that is asked for, with a sentence per initial state."""

from __future__ import annotations

from collections.abc import Mapping

from apt_bench.envs.tabletop.layouts import LAYOUTS, containers_of, move_sentence
from apt_bench.envs.tabletop.specs import scene_spec
from apt_bench.errors import UserError, did_you_mean
from apt_bench.suites import Cell, Task

INITS = 1000
TRAIN_INITS = 1_000_000


def cell_tasks(cell: Cell) -> list[Task]:
    """The provider named by the tabletop suites' YAML files."""
    layout = cell.args.get("layout", "")
    if layout not in LAYOUTS:
        raise UserError(f"Cell '{cell.name}': no layout '{layout}'. {did_you_mean(str(layout), LAYOUTS)}")
    if layout == "storage":
        return [_task(cell, name, _storage_template(cell, name)) for name in ("red_plate", "blue_plate")]
    return [_task(cell, f"to_{c}", move_sentence("{item}", c)) for c in containers_of(cell.args)]


def _task(cell: Cell, name: str, template: str) -> Task:
    def prompts_of(init: int, seed: int) -> Mapping[str, str]:
        stages = scene_spec(cell.args, name, init, seed).stages
        keys = ("text", "second")  # the sentence that is sent first, and the one that follows
        return {key: stage.instruction for key, stage in zip(keys, stages, strict=False)}

    return Task(
        name=name,
        prompts={"text": template},
        args=cell.args,
        group=f"tabletop:{cell.args.get('robot', 'panda')}",
        inits=TRAIN_INITS if cell.args.get("split") == "train" else INITS,
        prompts_of=prompts_of,
    )


def _storage_template(cell: Cell, name: str) -> str:
    sentences = {
        "store": "Put the {item} in the storage box and close it.",
        "plate": f"Place the {{item}} on the {name.replace('_', ' ')}.",
    }
    return " / ".join(sentences[s] for s in cell.args.get("stages", sentences))
