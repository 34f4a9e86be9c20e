"""Collect demonstrations: run episodes and keep the successful ones, or all.

`OUT/run` is an ordinary run directory with every episode's record, protocol and versions, so collecting resumes as a
run does. Workers write each kept episode into `OUT/loose`, a complete file or none. At the end, also of an interrupted
run, these files move into the dataset: `OUT/CELL/TASK_demo.hdf5`, or the LeRobotDataset in `OUT`. `open_demos(OUT)`
reads all of it at any time.
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
from apt_bench.demos.demonstration import DemoInfo, Steps, current_names
from apt_bench.demos.hdf5_reader import Hdf5Entry, index_hdf5
from apt_bench.demos.hdf5_writer import merge_hdf5
from apt_bench.demos.lerobot_layout import INFO
from apt_bench.demos.lerobot_reader import LeRobotEntry, index_lerobot
from apt_bench.demos.lerobot_writer import LeRobotWriter
from apt_bench.demos.limits import MAX_SIDE
from apt_bench.demos.policy_start import PolicyStart
from apt_bench.demos.recording import LOOSE, Recording, digest
from apt_bench.envs import rendering
from apt_bench.rollout.runner import RunOptions, RunResult, run
from apt_bench.suites import EpisodeSpec, load_suite

Format = Literal["hdf5", "lerobot"]
VARIED = "variation=1"
"""Default motion of the oracle: varied, so that demonstrations do not all follow one path."""
OURS = ("run", LOOSE, "meta", "data", "videos")
"""Folder names in a dataset that are reserved, so no cell's folder may have them."""

NAME = re.compile(r"[\w@+=-][\w.@+=-]{0,199}")
Side = Annotated[int, Range(least=1, most=MAX_SIDE)]
FORMATS: tuple[Format, ...] = ("hdf5", "lerobot")


@dataclass(frozen=True)
class Collected:
    """Content of a dataset after collecting.

    Attributes:
        run: Result of the run.
        demonstrations: Number of demonstrations.
        successes: Number of successful ones.
        steps: Control steps of all.
        megabytes: Size of the files.
    """

    run: RunResult
    demonstrations: int
    successes: int
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
    start: PolicyStart | None = None,
) -> Collected:
    """Run episodes and keep the successful ones as demonstrations.

    Args:
        options: The run; its `out` is not used.
        out: Folder of the dataset.
        console: Where progress is shown.
        format: File format.
        cameras: Cameras to record.
        size: Side of the images, in pixels.
        segmentation: Whether to record which pixel shows which object.
        failures: Whether to keep failed episodes too.
        image_every: Control steps from one image to the next.
        start: A trained policy that acts before the expert; what it does is not recorded.

    Raises:
        UserError: An argument is invalid, `out` holds demonstrations of other settings, another process is collecting
            there, or nothing more can be written.
    """
    build(Side, size, "--size")
    build(Steps, image_every, "--image-every")
    if not cameras:
        raise UserError("--cameras is empty. Name at least one camera.")
    if image_every > 1 and (segmentation or format == "lerobot"):
        raise UserError(
            "--image-every above 1 needs --format hdf5 and cannot be combined with --segmentation."
        )
    if segmentation and format == "lerobot":
        raise UserError("LeRobotDataset cannot store segmentation. Use --format hdf5.")
    if size % 2 and format == "lerobot":
        raise UserError(
            f"--size {size} does not fit mp4, which needs even sides. Use --format hdf5, or an even size."
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
    settings: dict[str, object] = {
        "format": format,
        "cameras": list(cameras),
        "size": size,
        "segmentation": segmentation,
    }
    settings |= {"failures": failures, "image_every": image_every}
    settings["start"] = [start.policy.policy, dict(start.policy.args), start.decisions] if start else None

    def wrap(spec: EpisodeSpec) -> EpisodeSpec:
        return recording.wrap(start.wrap(spec) if start else spec)

    with exclusive(out, "apt-bench collect"):  # before any file there is changed
        try:
            _begin(out, settings)
            try:
                result = run(options.replace(out=out / "run"), console, wrap)
            finally:
                seal(out, format, console)
            infos = open_demos(out).infos if holds_demos(out) else []
            size_of_all = megabytes(out)
        except OSError as error:
            raise UserError(
                f"Cannot write to {out}: {reason(error)}. All recorded episodes are kept. Free some space, or make the "
                "folder writable, and rerun the same command to resume."
            ) from None
    wins = sum(i.success for i in infos)
    return Collected(result, len(infos), wins, sum(i.steps for i in infos), size_of_all)


def megabytes(out: Path) -> float:
    """Size of the dataset's files, without the run directory."""
    files = (f for f in out.rglob("*") if f.is_file() and out / "run" not in f.parents)
    return sum(f.stat().st_size for f in files) / 1e6


def holds_demos(out: Path) -> bool:
    """Whether the folder has a demonstration file."""
    return any(recordings(out))


def _begin(out: Path, settings: Mapping[str, object]) -> None:
    """Claim the folder for these settings. Raises UserError if it holds anything else."""
    path = out / "collect.json"
    if path.is_file():
        old = {"failures": False, "image_every": 1, "start": None, **current_names(read_json(path))}
        if old != settings and holds_demos(out):
            differing = [f"{k}: {old.get(k)} there, {v} now" for k, v in settings.items() if old.get(k) != v]
            raise UserError(
                f"{out} holds demonstrations of other settings ({'; '.join(differing)}). Give --out another folder, "
                "or repeat those settings."
            )
    ours = out.rglob(f"*{PART}") if path.is_file() else out.glob(f"{path.name}*{PART}")
    for part in ours:  # partial files of a killed process; no other process writes here
        if out / "run" not in part.parents:
            try_remove(part)
    if not path.is_file() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and is not a dataset. Give --out an empty or new folder.")
    write_json(path, settings)


def seal(out: Path, format: Format, console: Console) -> None:
    """Move loose demonstrations into the dataset.

    A kill at any point loses nothing: a loose file is deleted only after the dataset with its episode is on the disk.

    Args:
        out: Folder of the dataset.
        format: File format.
        console: Where progress is shown.

    Raises:
        OSError: The dataset cannot be written.
    """
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
    with suppress(OSError):  # it is not empty if the operating system created a file there
        (out / LOOSE).rmdir()


def _same(entry: Hdf5Entry, there: LeRobotEntry | None) -> bool:
    """Whether the dataset holds this episode. Images are not compared, as video compression changes them."""
    if there is None or there.info != entry.info:
        return False
    a, b = entry.load(cameras=()), there.load(cameras=())
    return np.array_equal(a.actions, b.actions) and np.array_equal(a.state, b.state)


def _task_file(out: Path, info: DemoInfo) -> Path:
    """The file of a demonstration, inside `out` for any names of cell and task."""
    assert info.key is not None
    cell = _component(info.key.cell)
    return out / (f"{cell}_" if cell in OURS else cell) / f"{_component(info.key.task)}_demo.hdf5"


def _component(name: str) -> str:
    return name if NAME.fullmatch(name) else f"{file_name(name)}-{digest(name)}"


def _order(info: DemoInfo) -> tuple[str, str, int]:
    assert info.key is not None
    return info.key.cell, info.key.task, info.key.init
