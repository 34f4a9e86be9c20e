"""Send metrics to Weights & Biases or to trackio, which share one interface.

Both are optional: `episodes.jsonl` and `metrics.jsonl` hold all data of a run. Their own settings apply:
WANDB_MODE=offline (send it later with `wandb sync`), WANDB_PROJECT, WANDB_DIR; TRACKIO_PROJECT and TRACKIO_DIR.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.text import one_line, say

TRACKERS = ("none", "wandb", "trackio")
PROJECT = "apt-bench"


class Tracker:
    """Sends metrics to a tracking module, or does nothing without one.

    If the module fails, the failure is reported once and the module is not used again, so that no episode is lost."""

    def __init__(self, module: Any = None) -> None:
        self._module = module

    def log(self, values: Mapping[str, Any]) -> None:
        """Log the current values of metrics by name."""
        self._try(lambda module: module.log(dict(values)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        data = [list(row) for row in rows]
        self._try(lambda module: module.log({name: module.Table(columns=list(columns), data=data)}))

    def finish(self) -> None:
        """Send the remaining data and close the tracked run."""
        self._try(lambda module: module.finish())

    def _try(self, call: Any) -> None:
        if self._module is None:
            return
        try:
            call(self._module)
        except Exception as error:
            name, self._module = self._module.__name__, None
            say(f"{name} failed and is not used any more: {one_line(f'{type(error).__name__}: {error}')}")


def find_tracker(kind: str) -> Any:
    """Import the tracking module of this name; None for `none`.

    Raises:
        UserError: There is no such tracker, or it is not installed.
    """
    if kind not in TRACKERS:
        raise UserError(f"No tracker '{kind}'. {did_you_mean(kind, TRACKERS)}")
    if kind == "none":
        return None
    try:
        module = import_module(kind)
        if not hasattr(module, "init"):  # a folder `wandb` is importable where the package is not installed
            raise ImportError(f"'{kind}' is a folder here, not the package")
        return module
    except ImportError as error:
        raise UserError(
            f"--track {kind} needs the package {kind} ({error}). Install it: pip install 'apt-bench[{kind}]'."
        ) from None


@contextmanager
def tracking(kind: str, out: Path, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """Track a run under the name of its folder. The same folder resumes the same tracked run.

    Args:
        kind: One of `TRACKERS`.
        out: The folder of the run.
        config: Settings to store with the tracked run.

    Raises:
        UserError: The tracker cannot start.
    """
    module = find_tracker(kind)
    if module is not None:
        same: dict[str, Any] = {"name": out.name, "resume": "allow"}
        if kind == "wandb":
            same["id"] = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
        project = os.environ.get(f"{kind.upper()}_PROJECT", PROJECT)
        try:
            module.init(project=project, config=dict(config), **same)
        except Exception as error:
            offline = " Log in with `wandb login`, or set WANDB_MODE=offline." if kind == "wandb" else ""
            raise UserError(f"{kind} could not start: {type(error).__name__}: {error}.{offline}") from None
    tracker = Tracker(module)
    try:
        yield tracker
    finally:
        tracker.finish()
