"""Compose two LIBERO-Goal tasks in their shared scene.

The ten tasks of LIBERO-Goal share one scene: their BDDL files differ only in sentence, goal and objects of interest.
Any two of them can therefore be instructed in one episode. A pair starts from the first task's initial states.
`suites/libero_compose_solvable.json` records which pairs the oracle has done.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

from apt_bench.core.errors import UserError
from apt_bench.core.status import name_step
from apt_bench.envs.libero import tasks as libero_tasks
from apt_bench.envs.libero.bddl import read_bddl
from apt_bench.envs.libero.validation import files
from apt_bench.envs.subtasks import undoes
from apt_bench.runs.solvability import on_record
from apt_bench.suites import Cell, Suite, Task
from apt_bench.suites.findings import Finding, simulator

SUITE, BENCHMARK = "libero_compose", "libero_goal"
SEPARATOR = "__then__"


def cell_tasks(cell: Cell) -> list[Task]:
    """Return the ordered pairs of a cell.

    `cell.args["mode"]` is `coaching` (two sentences) or `chaining` (one sentence). `cell.args["pairs"]` is `done`
    (pairs that the oracle has done in either mode, or has not tried) or `never_done` (the other pairs).

    Raises UserError for other arguments.
    """
    for key, known in (("mode", ("coaching", "chaining")), ("pairs", ("done", "never_done"))):
        if cell.args.get(key) not in known:
            raise UserError(
                f"Cell '{cell.name}': args need {key}: {' or '.join(known)}, not {cell.args.get(key)!r}."
            )
    record = on_record(SUITE).values()
    left_out = {e.task for e in record} - {e.task for e in record if e.solved}
    tasks = [
        _task(cell, *pair)
        for pair in permutations(libero_tasks.manifest()["benchmarks"][BENCHMARK]["tasks"], 2)
    ]
    return [t for t in tasks if (t.name in left_out) == (cell.args["pairs"] == "never_done")]


def _task(cell: Cell, first: dict[str, Any], second: dict[str, Any]) -> Task:
    one, two = first["file"], second["file"]
    return Task(
        name=f"{first['name']}{SEPARATOR}{second['name']}",
        prompts={"text": one, "second": two}
        if cell.args["mode"] == "coaching"
        else {"text": f"{one}, then {two}"},
        # Without the mode, so that both modes have the same initial states.
        args={"benchmark": BENCHMARK, "base": BENCHMARK, "task": first["name"], "then": second["name"]},
        group=first["group"],
        inits=first["inits"],
    )


def checks(suite: Suite, premises: bool = False) -> Iterator[Finding]:
    """Check versions and files, that the tasks share one scene, and count the pairs.

    `premises`: also let every default scene settle. No goal may hold before the policy acts."""
    yield from simulator(suite)
    cell = suite.cells[0]
    yield from files(cell, libero_tasks.cell_tasks(cell))
    problems = [read_bddl(libero_tasks.bddl_path(BENCHMARK, t.name)) for t in libero_tasks.cell_tasks(cell)]
    if len({(str(p.objects), str(p.fixtures), p.init) for p in problems}) == 1:
        yield Finding("ok", "scene", f"{len(problems)} tasks share objects, fixtures and start")
    else:
        yield Finding("error", "scene", "the tasks do not share one scene")
    for cell in suite.cells:
        goals = [libero_tasks.goals(task.args) for task in suite.cell_tasks(cell)]
        undone = sum(undoes(second, first) for first, second in goals)
        yield Finding(
            "ok", "pairs", f"{len(goals)} pairs; in {undone} the second undoes the first", cell.name
        )
    if premises:
        yield from _premises(suite)


def _premises(suite: Suite) -> Iterator[Finding]:
    from apt_bench.envs.libero import LiberoEnv

    env = LiberoEnv()
    try:
        for cell in suite.cells:
            found = 0
            specs = suite.select([cell.name]) if suite.cell_tasks(cell) else ()
            for number, spec in enumerate(specs, 1):
                name_step(f"Checking {cell.name}: initial state {number} of {len(specs)}")
                env.reset(spec)
                for atom in filter(env.scene.holds, env.subtasks.all_goals):
                    found += 1
                    message = f"{atom} holds before the policy acts"
                    yield Finding("error", "goal_reached", message, cell.name, spec.key.task, spec.key.init)
            if not found:
                yield Finding("ok", "premise", "no goal holds before the policy acts", cell.name)
    finally:
        env.close()
