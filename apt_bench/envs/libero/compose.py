"""Two LIBERO-Goal tasks, one after the other, in their shared scene.

The ten tasks of LIBERO-Goal have one scene (their BDDL files differ in sentence, goal and objects of interest alone), so
any two can be asked for in one episode. A pair starts from the first task's initial states.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

from apt_bench.envs.libero.catalog import manifest
from apt_bench.suites import Cell, Task

BENCHMARK = "libero_goal"
SEPARATOR = "__then__"


def cell_tasks(cell: Cell) -> list[Task]:
    """The ordered pairs of a cell. `cell.args["mode"]`: `coaching` (two sentences) or `chaining` (one)."""
    rows = manifest()["benchmarks"][BENCHMARK]["tasks"]
    return [_task(cell, first, second) for first, second in permutations(rows, 2)]


def _task(cell: Cell, first: dict[str, Any], second: dict[str, Any]) -> Task:
    one, two = first["file"], second["file"]
    return Task(
        name=f"{first['name']}{SEPARATOR}{second['name']}",
        prompts={"text": one, "second": two}
        if cell.args["mode"] == "coaching"
        else {"text": f"{one}, then {two}"},
        # Not the mode: both modes see the same initial states.
        args={"benchmark": BENCHMARK, "base": BENCHMARK, "task": first["name"], "then": second["name"]},
        group=first["group"],
        inits=first["inits"],
    )
