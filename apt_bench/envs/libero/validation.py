"""The checks of `apt-bench validate` for the LIBERO suites.

They check versions, counts, checksums and sentences. A slow check simulates every initial state and compares each
settled scene with its BDDL file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from apt_bench.core.files import sha256
from apt_bench.core.status import name_step
from apt_bench.envs.libero.bddl import read_bddl
from apt_bench.envs.libero.known_defects import DEFECTS, MEANING
from apt_bench.envs.libero.tasks import bddl_path, init_path, load_inits, manifest
from apt_bench.suites import Cell, EpisodeSpec, Suite, Task
from apt_bench.suites.findings import Finding, Level, simulator

if TYPE_CHECKING:
    from apt_bench.envs.libero.env import LiberoEnv

MAX_WORDS = 30
DISPLACED = 0.05  # m sideways
FALLEN = 0.25  # m down; in initial states, objects are up to 0.15 m above their support

Place = tuple[str, str]  # benchmark, task


def checks(suite: Suite, premises: bool = False) -> Iterator[Finding]:
    """Yield every finding: the suite's first, then cell by cell.

    `premises`: also simulate every initial state of every cell with the suite's own seed, about 0.2 s each."""
    yield from simulator(suite)
    yield from _unavailable(suite)
    yield from _task_prompts(suite)
    for cell in suite.cells:
        tasks = suite.cell_tasks(cell)
        yield from files(cell, tasks)
        for index, task in enumerate(tasks):
            if not task.unavailable:
                yield from _prompt(cell, task)
                yield from _defects(cell, task, index)
    if premises:
        yield from _premises(suite)


def _unavailable(suite: Suite) -> Iterator[Finding]:
    """Yield the benchmarks of the suite's families that cannot be run, whether or not a cell names them."""
    used = {cell.args["benchmark"] for cell in suite.cells}
    benchmarks = manifest()["benchmarks"]
    perturbed = any(benchmarks[name]["base"] != name for name in used)
    for name, benchmark in benchmarks.items():
        if reason := benchmark.get("unavailable") if perturbed or name in used else None:
            yield Finding("warn", "unavailable", f"{name} cannot be run: {reason}")


def _task_prompts(suite: Suite) -> Iterator[Finding]:
    """Check that `_task` cells do not send `task.language`, the old sentence from the file's name."""
    cells = [c for c in suite.cells if c.args["benchmark"].endswith("_task")]
    rows = [(cell, task) for cell in cells for task in suite.cell_tasks(cell)]
    if not rows:
        return
    differ = [task.prompts[cell.instruction] != task.prompts["file"] for cell, task in rows]
    yield Finding(
        "ok" if all(differ) else "error",
        "prompt",
        f"{sum(differ)} of {len(differ)} _task prompts differ from LIBERO's task.language",
    )


def files(cell: Cell, tasks: Sequence[Task]) -> Iterator[Finding]:
    """Compare the files of a cell's benchmark with the manifest."""
    name = cell.args["benchmark"]
    rows = manifest()["benchmarks"][name]["tasks"]
    bad = 0
    for task, row in zip(tasks, rows, strict=True):
        if task.unavailable:
            continue
        wanted = ((bddl_path(name, task.name), "bddl_sha256"), (init_path(name, task.name), "init_sha256"))
        for path, key in wanted:
            if not path.is_file():
                problem = f"{path} is missing"
            elif sha256(path) != row[key]:
                problem = f"{path} is not the file of the manifest (SHA-256 {row[key][:12]}...)"
            elif key == "init_sha256" and len(load_inits(name, task.name)) != row["inits"]:
                problem = f"{path} does not hold {row['inits']} initial states"
            else:
                continue
            bad += 1
            yield Finding("error", "file", problem, cell.name, task.name)
    if not bad:
        count = sum(not task.unavailable for task in tasks)
        inits = sum(task.inits for task in tasks)
        message = f"{count} tasks, {inits} initial states; all {2 * count} files match the manifest"
        yield Finding("ok", "file", message, cell.name)


def _prompt(cell: Cell, task: Task) -> Iterator[Finding]:
    """Check that the sentence that is sent is well-formed and matches the goal."""

    def finding(level: Level, message: str) -> Finding:
        return Finding(level, "prompt", f"{message}: '{sent}'", cell.name, task.name)

    sent, old = task.prompts[cell.instruction], task.prompts["file"]
    benchmark, base = task.args["benchmark"], task.args["base"]
    goals = [read_bddl(bddl_path(b, task.name)).goal for b in (benchmark, base)]
    if benchmark == f"{base}_object":  # objects of another appearance have other names
        same_goal = [a.predicate for a in goals[0]] == [a.predicate for a in goals[1]]
    else:
        same_goal = set(goals[0]) == set(goals[1])
    if not cell.stale and cell.instruction == "bddl" and sent == old:
        yield finding("error", "the perturbed task sends the unperturbed sentence")
    if not same_goal and cell.instruction == "file" and not cell.stale:
        yield finding("error", "the goal differs from the unperturbed task's, the sentence does not")
    if same_goal and benchmark.endswith("_task"):
        yield finding("error", "the goal is the unperturbed task's")
    if re.search(r"_|\.bddl|scene ?\d", sent, re.IGNORECASE) or sent != " ".join(sent.split()):
        yield finding("error", "the sentence has remains of a file name or extra spaces")
    if re.search(r"\d", sent):
        yield finding("warn", "the sentence contains a digit")
    if not sent.isascii():
        yield finding("warn", "the sentence contains a character outside ASCII")
    if not 2 <= len(sent.split()) <= MAX_WORDS:
        yield finding("warn", f"the sentence has {len(sent.split())} words")


def _defects(cell: Cell, task: Task, index: int) -> Iterator[Finding]:
    for init, flags in DEFECTS.get(cell.args["benchmark"], {}).get(index, {}).items():
        for flag in flags:
            yield Finding("warn", flag, f"known defect: {MEANING[flag]}", cell.name, task.name, init)


def _premises(suite: Suite) -> Iterator[Finding]:
    from apt_bench.envs.libero.env import LiberoEnv

    env = LiberoEnv()
    try:
        for cell in suite.cells:
            found = 0
            available = [t for t in suite.cell_tasks(cell) if not t.unavailable]
            specs = suite.select(cells=[cell.name], episodes=min(t.inits for t in available))
            for number, spec in enumerate(specs, 1):
                name_step(f"Checking {cell.name}: initial state {number} of {len(specs)}")
                for kind, message in premise(env, spec):
                    found += 1
                    thrown = "ejected_goal_object" in spec.flags  # then it is no longer on or in anything
                    known = kind in spec.flags or (kind == "premise" and thrown)
                    level: Level = "warn" if known or kind == "moved" else "error"
                    text = f"{message} (known)" if known else message
                    yield Finding(level, kind, text, cell.name, spec.key.task, spec.key.init)
            if not found:
                yield Finding("ok", "premise", "every settled scene matches its BDDL file", cell.name)
    finally:
        env.close()


def premise(env: LiberoEnv, spec: EpisodeSpec) -> list[tuple[str, str]]:
    """Let the scene of an episode settle, compare it with its BDDL file, and return the problems as (kind, message).

    Kinds: `goal_reached`: the goal holds before the policy acts. `ejected_goal_object`, `moved`: a goal object or
    another object was thrown or fell. `premise`: an On or In of the initial state between two objects no longer holds.
    """
    env.reset(spec)
    scene, place = env.scene, (spec.args["benchmark"], spec.args["task"])
    problem = read_bddl(bddl_path(*place))
    start = load_inits(*place)[spec.key.init][1:]
    found: list[tuple[str, str]] = []
    if all(scene.holds(atom) for atom in problem.goal):
        found.append(("goal_reached", "the goal holds before the policy acts"))
    wanted = {*problem.objects_of_interest, *(name for atom in problem.goal for name in atom.args)}
    for name, obj in scene.objects.items():
        if not obj.movable:
            continue
        address = scene.model.jnt_qposadr[scene.model.body_jntadr[obj.body]]
        now = scene.data.qpos[address : address + 3]
        moved, fell = np.linalg.norm(now[:2] - start[address : address + 2]), start[address + 2] - now[2]
        if moved > DISPLACED or fell > FALLEN:
            kind = "ejected_goal_object" if name in wanted else "moved"
            found.append((kind, f"settling moves {name} by {moved:.2f} m sideways and {fell:.2f} m down"))
    names = {*scene.objects, *(n for n, region in scene.regions.items() if region.parent in scene.objects)}
    for atom in problem.init:
        if atom.predicate in ("on", "in") and set(atom.args) <= names and not scene.holds(atom):
            found.append(("premise", f"{atom} does not hold once the scene has settled"))
    return found
