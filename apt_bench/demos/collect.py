"""Collect demonstrations: a run whose successes are kept; or all its episodes.

`OUT/run` is an ordinary run directory (every episode's record, protocol, versions), so collecting resumes as a run
does. Workers put each of these into `OUT/loose`, a whole file or none; at the end, also of an interrupted run, they go
into the data set: `OUT/CELL/TASK_demo.hdf5`, or the LeRobotDataset in `OUT`. `open_demos(OUT)` reads all of it at any
time.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import track

from apt_bench import rendering
from apt_bench.core.errors import UserError
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.format import DemoInfo
from apt_bench.demos.hdf5 import index_hdf5, merge_hdf5
from apt_bench.demos.lerobot import LeRobotWriter, index_lerobot
from apt_bench.demos.recording import LOOSE, Recording
from apt_bench.rollout.identity import versions
from apt_bench.rollout.runner import RunOptions, RunResult, run
from apt_bench.suites import load_suite

Format = Literal["hdf5", "lerobot"]
VARIED = "variation=1"
"""How the oracle moves unless it is told otherwise: demonstrations shall not all be one path."""
FORMATS: tuple[Format, ...] = ("hdf5", "lerobot")


@dataclass(frozen=True)
class Collected:
    """What a data set holds now."""

    run: RunResult
    demonstrations: int
    successes: int  # of them
    steps: int
    megabytes: float


def collect(
    options: RunOptions,
    out: Path,
    console: Console,
    format: Format = "hdf5",
    cameras: tuple[str, ...] = ("agentview", "wrist"),
    size: int = 256,
    segmentation: bool = False,
    failures: bool = False,
    look_every: int = 1,
) -> Collected:
    """Run `options` (its `out` is not used) and keep the successes, or with `failures` every episode, in the folder
    `out`. look_every: control steps from one image to the next; a training that looks at no others needs no others.

    Raises UserError for bad input, and where `out` holds demonstrations of other settings.
    """
    if size < 1:
        raise UserError(f"--size must be at least 1, not {size}.")
    if look_every < 1:
        raise UserError(f"--look-every must be at least 1, not {look_every}.")
    if look_every > 1 and (segmentation or format == "lerobot"):
        raise UserError("--look-every goes with --format hdf5, without --segmentation.")
    if segmentation and format == "lerobot":
        raise UserError("LeRobotDataset has no place for segmentation. Use --format hdf5.")
    settings = {"format": format, "cameras": list(cameras), "size": size, "segmentation": segmentation}
    _check_settings(out, {**settings, "failures": failures, "look_every": look_every})
    if options.policy == "oracle" and not any(a.startswith("variation=") for a in options.policy_args):
        options = dataclasses.replace(options, policy_args=(*options.policy_args, VARIED))
    suite = load_suite(options.suite)
    if suite.simulator:
        rendering.choose_backend()  # once, for every worker
    recording = Recording(
        out=str(out.resolve()),
        cameras=cameras,
        size=size,
        policy=options.policy,
        control_hz=suite.control_hz,
        segmentation=segmentation,
        failures=failures,
        look_every=look_every,
        simulator=versions(suite.simulator),
    )
    try:
        result = run(dataclasses.replace(options, out=out / "run"), console, recording.wrap)
    finally:
        seal(out, format, console)
    infos = open_demos(out).infos if holds_demos(out) else []
    wins = sum(i.success for i in infos)
    return Collected(result, len(infos), wins, sum(i.steps for i in infos), megabytes(out))


def megabytes(out: Path) -> float:
    """Size of the data set's files, without the records of the run."""
    files = (f for f in out.rglob("*") if f.is_file() and out / "run" not in f.parents)
    return sum(f.stat().st_size for f in files) / 1e6


def holds_demos(out: Path) -> bool:
    """Whether there is anything to read yet."""
    return any(out.rglob("*.hdf5")) or (out / "meta/info.json").exists()


def _check_settings(out: Path, settings: dict[str, object]) -> None:
    path = out / "collect.json"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder.")
    if path.is_file():
        old = {"failures": False, "look_every": 1, **json.loads(path.read_text())}
        if old != settings and holds_demos(out):
            differing = [f"{k}: {old.get(k)} there, {v} now" for k, v in settings.items() if old.get(k) != v]
            raise UserError(
                f"{out} holds demonstrations of other settings ({'; '.join(differing)}). Give --out another folder, "
                "or repeat those settings."
            )
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no demonstrations. Give --out an empty or new folder.")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n")


def seal(out: Path, format: Format, console: Console) -> None:
    """Move loose demonstrations into the data set. Killed at any point, it loses nothing: a loose file goes only when
    the data set that holds its episode is in place."""
    loose = {path: index_hdf5(path)[0] for path in sorted((out / LOOSE).glob("*.hdf5"))}
    if not loose:
        return
    if format == "hdf5":
        by_task: dict[Path, list[Path]] = defaultdict(list)
        for path, entry in loose.items():
            by_task[_task_file(out, entry.info)].append(path)
        for target, paths in track(by_task.items(), "Writing HDF5", console=console, transient=True):
            merge_hdf5(target, [target, *paths] if target.exists() else paths)
            for path in paths:
                path.unlink()
    else:
        there = {e.info.episode for e in index_lerobot(out)} if (out / "meta/info.json").is_file() else set()
        writer = LeRobotWriter(out)
        ordered = sorted(loose.values(), key=lambda e: _order(e.info))
        for entry in track(ordered, "Writing mp4", console=console, transient=True):
            if entry.info.episode not in there:
                writer.add(entry.load())
        writer.close()
        for path in loose:
            path.unlink()
    (out / LOOSE).rmdir()


def _task_file(out: Path, info: DemoInfo) -> Path:
    assert info.key is not None
    return out / info.key.cell / f"{info.key.task}_demo.hdf5"


def _order(info: DemoInfo) -> tuple[str, str, int]:
    assert info.key is not None
    return info.key.cell, info.key.task, info.key.init
