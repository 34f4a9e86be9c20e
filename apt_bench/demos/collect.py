"""Collect demonstrations: a run whose successes are kept; or all its episodes.

`OUT/run` is an ordinary run directory (every episode's record, protocol, versions), so collecting resumes as a run
does. Workers put each of these into `OUT/loose`, a whole file or none; at the end, also of an interrupted run, they go
into the data set: `OUT/CELL/TASK_demo.hdf5`, or the LeRobotDataset in `OUT`. `open_demos(OUT)` reads all of it at any
time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from rich.console import Console
from rich.progress import track

from apt_bench.core import provenance
from apt_bench.core.config import Range, build
from apt_bench.core.errors import UserError
from apt_bench.core.files import PART, exclusive, read_json, reason, try_remove, write_json
from apt_bench.core.text import file_name
from apt_bench.demos.dataset import open_demos, recordings
from apt_bench.demos.format import DemoInfo, Steps, current_names
from apt_bench.demos.hdf5 import merge_hdf5
from apt_bench.demos.hdf5_reader import Hdf5Entry, index_hdf5
from apt_bench.demos.lerobot import LeRobotWriter
from apt_bench.demos.lerobot_layout import INFO
from apt_bench.demos.lerobot_reader import LeRobotEntry, index_lerobot
from apt_bench.demos.limits import MAX_SIDE
from apt_bench.demos.recording import LOOSE, Recording, digest
from apt_bench.envs import rendering
from apt_bench.rollout.runner import RunOptions, RunResult, run
from apt_bench.suites import load_suite

Format = Literal["hdf5", "lerobot"]
VARIED = "variation=1"
"""How the oracle moves unless it is told otherwise: demonstrations shall not all be one path."""
OURS = ("run", LOOSE, "meta", "data", "videos")
"""Folders in a data set's that no cell may have."""

NAME = re.compile(r"[\w@+=-][\w.@+=-]{0,199}")
Side = Annotated[int, Range(least=1, most=MAX_SIDE)]
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
    image_every: int = 1,
) -> Collected:
    """Run `options` (its `out` is not used) and keep the successes, or with `failures` every episode, in the folder
    `out`. image_every: control steps from one image to the next; a training that looks at no others needs no others.

    Raises UserError for bad input, where `out` holds demonstrations of other settings or another `collect` writes
    there, and where nothing more can be written.
    """
    build(Side, size, "--size")
    build(Steps, image_every, "--image-every")
    if not cameras:
        raise UserError("Demonstrations without images teach nothing. Give --cameras at least one.")
    if image_every > 1 and (segmentation or format == "lerobot"):
        raise UserError("--image-every goes with --format hdf5, without --segmentation.")
    if segmentation and format == "lerobot":
        raise UserError("LeRobotDataset has no place for segmentation. Use --format hdf5.")
    if size % 2 and format == "lerobot":
        raise UserError(
            f"--size {size} does not fit mp4, whose sides are even. Use --format hdf5, or another size."
        )
    policy, args = options.execution.policy, options.execution.policy_args
    if policy == "oracle" and not any(a.startswith("variation=") for a in args):
        options = options.replace(policy_args=(*args, VARIED))
    suite = load_suite(options.selection.suite)
    if suite.simulator:
        rendering.choose_backend()  # once, for every worker
    recording = Recording(
        out=str(out.resolve()),
        cameras=cameras,
        size=size,
        policy=policy,
        control_hz=suite.control_hz,
        segmentation=segmentation,
        failures=failures,
        image_every=image_every,
        simulator=provenance.labels(suite.simulator),
    )
    settings = {"format": format, "cameras": list(cameras), "size": size, "segmentation": segmentation}
    settings |= {"failures": failures, "image_every": image_every}
    with exclusive(out, "apt-bench collect"):  # before anything there is touched
        try:
            _begin(out, settings)
            try:
                result = run(options.replace(out=out / "run"), console, recording.wrap)
            finally:
                seal(out, format, console)
            infos = open_demos(out).infos if holds_demos(out) else []
            size_of_all = megabytes(out)
        except OSError as error:
            raise UserError(
                f"Cannot write to {out}: {reason(error)}. What was recorded is there. Make room, or make the folder "
                "writable again; the same command goes on from here."
            ) from None
    wins = sum(i.success for i in infos)
    return Collected(result, len(infos), wins, sum(i.steps for i in infos), size_of_all)


def megabytes(out: Path) -> float:
    """Size of the data set's files, without the records of the run."""
    files = (f for f in out.rglob("*") if f.is_file() and out / "run" not in f.parents)
    return sum(f.stat().st_size for f in files) / 1e6


def holds_demos(out: Path) -> bool:
    """Whether there is anything to read yet."""
    return any(recordings(out))


def _begin(out: Path, settings: Mapping[str, object]) -> None:
    """Take the folder for these settings. Raises UserError where it is something else's."""
    path = out / "collect.json"
    if path.is_file():
        old = {"failures": False, "image_every": 1, **current_names(read_json(path))}
        if old != settings and holds_demos(out):
            differing = [f"{k}: {old.get(k)} there, {v} now" for k, v in settings.items() if old.get(k) != v]
            raise UserError(
                f"{out} holds demonstrations of other settings ({'; '.join(differing)}). Give --out another folder, "
                "or repeat those settings."
            )
    ours = out.rglob(f"*{PART}") if path.is_file() else out.glob(f"{path.name}*{PART}")
    for part in ours:  # left behind by a kill: this process alone writes here
        if out / "run" not in part.parents:
            try_remove(part)
    if not path.is_file() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no demonstrations. Give --out an empty or new folder.")
    write_json(path, settings)


def seal(out: Path, format: Format, console: Console) -> None:
    """Move loose demonstrations into the data set. Killed at any point, it loses nothing: a loose file goes only when
    the data set that holds its episode is on the disk. Raises OSError where that cannot be written."""
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
        there = index_lerobot(out) if (out / INFO).is_file() else []
        known = {e.info.episode: e for e in there}
        ordered = sorted(loose.values(), key=lambda e: _order(e.info))
        writer = LeRobotWriter(out)
        try:
            for entry in track(ordered, "Writing mp4", console=console, transient=True):
                if not _same(entry, known.get(entry.info.episode)):
                    writer.add(entry.load())
            writer.close()
        finally:
            writer.abort()
        for path in loose:
            path.unlink()
    with suppress(OSError):  # what operating systems leave behind
        (out / LOOSE).rmdir()


def _same(entry: Hdf5Entry, there: LeRobotEntry | None) -> bool:
    """Whether the data set holds this very episode; of its images only the compressed ones are there."""
    if there is None or there.info != entry.info:
        return False
    a, b = entry.load(cameras=()), there.load(cameras=())
    return np.array_equal(a.actions, b.actions) and np.array_equal(a.state, b.state)


def _task_file(out: Path, info: DemoInfo) -> Path:
    """Where a demonstration belongs, inside `out` whatever the cell and the task are called."""
    assert info.key is not None
    cell = _component(info.key.cell)
    return out / (f"{cell}_" if cell in OURS else cell) / f"{_component(info.key.task)}_demo.hdf5"


def _component(name: str) -> str:
    return name if NAME.fullmatch(name) else f"{file_name(name)}-{digest(name)}"


def _order(info: DemoInfo) -> tuple[str, str, int]:
    assert info.key is not None
    return info.key.cell, info.key.task, info.key.init
