"""What a person sees while training goes on, and the files that remain: `metrics.jsonl`, TensorBoard,
`loss.png`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from apt_bench.tracking import Tracker
from apt_bench.training.frames import Tick

LINE_EVERY = 15.0
"""Seconds between two lines where no bar can be drawn."""


class Report:
    """A bar on a terminal, lines elsewhere. A silent one (`console=None`) for all processes but the first."""

    def __init__(self, console: Console | None) -> None:
        self.console = console
        self.tracker = Tracker()

    def say(self, text: str) -> None:
        """One line."""
        if self.console:
            self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, what: str, total: int, start: int = 0) -> Iterator[Progress]:
        """A bar that counts to `total`, from `start`."""
        progress = Progress(self.console, what, total, start)
        try:
            yield progress
        finally:
            progress.close()

    @contextmanager
    def ticking(self, what: str) -> Iterator[Tick]:
        """A bar whose length is known at its first tick. Shows nothing if there is none."""
        bars: list[Progress] = []

        def tick(done: int, total: int) -> None:
            if not bars:
                bars.append(Progress(self.console, what, total, 0))
            bars[0].to(done)

        try:
            yield tick
        finally:
            for bar in bars:
                bar.close()


class Progress:
    """One bar with an estimate of the time left, and a note beside it."""

    def __init__(self, console: Console | None, what: str, total: int, start: int) -> None:
        self._console, self._what, self._total, self._start = console, what, total, start
        self._began = self._last = time.monotonic()
        self._bars: Bars | None = None
        if console and console.is_terminal:
            note = TextColumn("{task.fields[note]}")
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                note,
            )
            self._bars = Bars(*columns, console=console, transient=True)
            self._bars.start()
            self._task = self._bars.add_task(what, total=total, completed=start, note="")

    def to(self, done: int, note: str = "") -> None:
        """`done` of the total are done."""
        now = time.monotonic()
        if self._bars:
            self._bars.update(self._task, completed=done, note=note)
        elif self._console and (now - self._last >= LINE_EVERY or done == self._total):
            self._last = now
            left = (now - self._began) / max(1, done - self._start) * (self._total - done)
            line = f"{self._what}: {done}/{self._total}, {_duration(left)} left"
            self._console.print(f"{line}  {note}".rstrip(), highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bars:
            self._bars.stop()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


class Metrics:
    """`metrics.jsonl`: one line per logged step. What lies beyond `start` (steps that a killed run had logged
    but not saved) is dropped, so that every step is there once."""

    def __init__(self, folder: Path, start: int) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= start]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a")
        self._board = _tensorboard(folder)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append, and flush."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board:
            self._board.close()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`, [] if there is none; a torn last line is left out."""
    rows = []
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def plot_losses(folder: Path, title: str) -> Path | None:
    """`loss.png` of what `metrics.jsonl` holds: the training loss, smoothed, and the held-out loss."""
    rows = read_metrics(folder)
    train = [(r["step"], r["loss"]) for r in rows if "loss" in r]
    held = [(r["step"], r["held_out"]) for r in rows if "held_out" in r]
    if not train:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps, losses = zip(*train, strict=True)
    axes.plot(steps, losses, color="0.75", linewidth=0.8, label="training, as logged")
    axes.plot(steps, _smoothed(losses), color="C0", label="training, smoothed")
    if held:
        axes.plot(*zip(*held, strict=True), "o-", color="C1", markersize=3, label="held-out demonstrations")
    axes.set(xlabel="step", ylabel="weighted L1 on noise", title=title, yscale="log")
    axes.legend(frameon=False)
    path = folder / "loss.png"
    figure.savefig(path, dpi=120)
    return path


def _smoothed(values: tuple[float, ...], memory: float = 0.9) -> list[float]:
    out: list[float] = []
    for value in values:
        out.append(memory * out[-1] + (1 - memory) * value if out else value)
    return out
