"""What a person sees while training goes on, and the files that remain: `metrics.jsonl`, TensorBoard,
`loss.png`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from apt_bench.core.files import parse_json, read_bytes, reason, write_whole
from apt_bench.core.text import plain
from apt_bench.core.text import say as say_on_stderr
from apt_bench.core.tracking import Tracker
from apt_bench.training.cache import Tick

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
            self.console.print(Text(plain(text)), soft_wrap=True)

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
            note = TextColumn("{task.fields[note]}", markup=False)
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                note,
            )
            self._bars = Bars(*columns, console=console, transient=True)
            self._bars.start()
            self._task = self._bars.add_task(plain(what), total=total, completed=start, note="")

    def to(self, done: int, note: str = "") -> None:
        """`done` of the total are done."""
        now = time.monotonic()
        if self._bars:
            self._bars.update(self._task, completed=done, note=plain(note))
        elif self._console and (now - self._last >= LINE_EVERY or done == self._total):
            self._last = now
            left = (now - self._began) / max(1, done - self._start) * (self._total - done)
            line = f"{self._what}: {done}/{self._total}, {_duration(left)} left"
            self._console.print(Text(plain(f"{line}  {note}".rstrip())), soft_wrap=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bars:
            self._bars.stop()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


class Metrics:
    """`metrics.jsonl`: one line per logged step. What lies beyond `start` (steps that a killed run had logged
    but not saved) is dropped, so that every step is there once. A disk that takes no more costs the curve a gap, not
    the training its steps: `say` is told once."""

    def __init__(self, folder: Path, start: int, say: Callable[[str], None] = say_on_stderr) -> None:
        self.path = folder / "metrics.jsonl"
        self._say, self._failed = say, False
        kept = [row for row in read_metrics(folder) if row["step"] <= start]
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = self.path.open("ab", buffering=0)
        self._board = _tensorboard(folder)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append."""
        line = json.dumps({"step": step, **values}).encode() + b"\n"
        try:
            self._file.write(b"\n" + line if self._failed else line)  # what failed may have left half a line
            if self._board:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)
        except Exception as error:  # TensorBoard's writer raises what its thread met
            if not self._failed:
                self._say(f"{self.path} cannot be written: {reason(error)}. Training goes on.")
            self._failed = True

    def close(self) -> None:
        """Close the files."""
        try:
            self._file.close()
            if self._board:
                self._board.close()
        except Exception as error:
            self._say(f"{self.path} cannot be closed: {reason(error)}.")


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


METRICS_LIMIT = 2**30
"""Bytes of `metrics.jsonl` that are read, at most."""


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`, [] if there is none; torn lines are left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in read_bytes(path, METRICS_LIMIT).decode("utf-8", "replace").splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and all(type(v) in (int, float) for v in row.values()) and "step" in row:
            rows.append(row)
    return rows


def plot_losses(folder: Path, title: str, what: str = "loss") -> Path | None:
    """`loss.png` of what `metrics.jsonl` holds: the training loss, smoothed, and the held-out loss. what: the loss's
    name. Raises OSError where it cannot be written."""
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
    axes.plot(steps, smoothed(losses), color="C0", label="training, smoothed")
    if held:
        axes.plot(*zip(*held, strict=True), "o-", color="C1", markersize=3, label="held-out demonstrations")
    axes.set(xlabel="step", ylabel=what, title=title, yscale="log" if _positive(losses) else "linear")
    axes.legend(frameon=False)
    path = folder / "loss.png"
    figure.savefig(path, dpi=120)
    return path


def _positive(values: Sequence[float]) -> bool:
    return min(values) > 0


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean about each value: of as many before it as behind it, a tenth of all at most, so that a falling curve
    is not trailed behind. Geometric where all are positive, as such a curve is drawn on a logarithmic axis."""
    log = _positive(values)
    x = np.log(values) if log else np.asarray(values, float)
    total, last = np.cumsum([0.0, *x]), len(x) - 1
    i = np.arange(len(x))
    half = np.minimum(np.minimum(i, last - i), max(1, len(x) // 20))
    means = (total[i + half + 1] - total[i - half]) / (2 * half + 1)
    return (np.exp(means) if log else means).tolist()
