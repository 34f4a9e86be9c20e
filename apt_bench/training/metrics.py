"""Logged metrics of a training: `metrics.jsonl`, TensorBoard, `loss.png`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apt_bench.core.files import parse_json, read_bytes, reason, write_whole
from apt_bench.core.text import say as say_on_stderr
from apt_bench.training.progress import Say


class Metrics:
    """Writes `metrics.jsonl`, one line per logged step, and TensorBoard files where TensorBoard is installed.

    Rows after step `start` (logged by a killed run after its last checkpoint) are dropped, so every step occurs once.
    A write error, such as a full disk, leaves a gap in the curve; training continues, and `say` gets one message.
    """

    def __init__(self, folder: Path, start: int, say: Say = say_on_stderr) -> None:
        self.path = folder / "metrics.jsonl"
        self._say, self._failed = say, False
        kept = [row for row in read_metrics(folder) if row["step"] <= start]
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = self.path.open("ab", buffering=0)
        self._board = _tensorboard(folder)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row."""
        line = json.dumps({"step": step, **values}).encode() + b"\n"
        try:
            self._file.write(
                b"\n" + line if self._failed else line
            )  # a failed write may have left half a line
            if self._board:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)
        except Exception as error:  # TensorBoard's writer raises errors of its thread
            if not self._failed:
                self._say(f"{self.path} cannot be written: {reason(error)}. Training continues.")
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
"""Largest `metrics.jsonl` that is read, in bytes."""


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`, [] without a file; incomplete lines are skipped."""
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
    """Draw `loss.png` from `metrics.jsonl`: the training loss, raw and smoothed, and the held-out loss.

    Args:
        folder: Folder of both files.
        title: Title of the chart.
        what: Name of the loss, for the axis.

    Returns:
        The path of the chart, None if there is no row.

    Raises:
        OSError: The chart cannot be written.
    """
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
    """The mean around each value, over as many values before it as after it and at most a tenth of all.

    The symmetric window keeps a falling curve from lagging. The mean is geometric where all values are positive, as
    such curves are drawn on a logarithmic axis.
    """
    log = _positive(values)
    x = np.log(values) if log else np.asarray(values, float)
    total, last = np.cumsum([0.0, *x]), len(x) - 1
    i = np.arange(len(x))
    half = np.minimum(np.minimum(i, last - i), max(1, len(x) // 20))
    means = (total[i + half + 1] - total[i - half]) / (2 * half + 1)
    return (np.exp(means) if log else means).tolist()
