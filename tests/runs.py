"""Small run directories, written as the runner writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apt_bench.analysis.run import Run, load_run
from apt_bench.runs.records import EpisodeRecord
from apt_bench.suites import EpisodeKey

PROTOCOL: dict[str, Any] = {"suite": "libero_pro", "seed": 7, "execute": 10, "cameras": [], "cells": {"x": 1}}


def record(cell: str, task: str, init: int, success: bool, **changes: Any) -> EpisodeRecord:
    """One episode of a `libero_pro` cell."""
    values: dict[str, Any] = {
        "key": EpisodeKey(changes.pop("suite", "libero_pro"), cell, task, init, 7, changes.pop("prompt_id", "default")),
        "policy": "apt",
        "prompt": task.replace("_", " "),
        "prompt_source": "bddl",
        "prompts": {},
        "outcome": "success" if success else "timeout",
        "steps": 100,
        "decisions": 10,
        "seconds": {"physics": 1.0, "policy": 0.5},
        "start_hash": f"{cell}{task}{init}",
        "end_hash": "e",
        "failure": None if success else "no_grasp",
    }  # fmt: skip
    return EpisodeRecord(**{**values, **changes})


def write_run(
    path: Path,
    success: Callable[[str, str, int], bool],
    cells: Mapping[str, int],
    tasks: int = 10,
    protocol: Mapping[str, Any] = PROTOCOL,
    policy: Mapping[str, Any] | None = None,
) -> Path:
    """A run of `cells` (name -> initial states per task), complete and without errors."""
    path.mkdir(parents=True)
    names = [f"task_{t}" for t in range(tasks)]
    lines = [
        record(c, t, i, success(c, t, i)).to_json() for c, n in cells.items() for t in names for i in range(n)
    ]
    (path / "episodes.jsonl").write_text("".join(line + "\n" for line in lines))
    (path / "protocol.json").write_text(json.dumps(protocol))
    asked = {c: dict.fromkeys(names, n) for c, n in cells.items()}
    info = {"policy": {"name": "apt", **(policy or {})}, "requested": asked, "wall_seconds": 60.0}
    (path / "run.json").write_text(json.dumps(info))
    return path


def make_run(
    path: Path, success: Callable[[str, str, int], bool], cells: Mapping[str, int], **rest: Any
) -> Run:
    """The same, read."""
    return load_run(write_run(path, success, cells, **rest), path.name)


def add(path: Path, *records: EpisodeRecord) -> None:
    """Append records to a run."""
    with open(path / "episodes.jsonl", "a") as file:
        file.writelines(r.to_json() + "\n" for r in records)
