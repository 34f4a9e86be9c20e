"""Metrics to Weights & Biases or to trackio, which share one interface. Both are optional, and neither is needed to
read a run: `episodes.jsonl` and `metrics.jsonl` hold everything.

Their own settings hold: WANDB_MODE=offline (`wandb sync` sends it later), WANDB_PROJECT, WANDB_DIR; TRACKIO_PROJECT and
TRACKIO_DIR.
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
    """Where numbers go; without a module, nowhere. A tracker that fails is told once and then left alone: it must not
    cost an episode."""

    def __init__(self, module: Any = None) -> None:
        self._module = module

    def log(self, values: Mapping[str, Any]) -> None:
        """Numbers by name, as they are now."""
        self._try(lambda module: module.log(dict(values)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, at the end."""
        data = [list(row) for row in rows]
        self._try(lambda module: module.log({name: module.Table(columns=list(columns), data=data)}))

    def finish(self) -> None:
        """Send what is left."""
        self._try(lambda module: module.finish())

    def _try(self, call: Any) -> None:
        if self._module is None:
            return
        try:
            call(self._module)
        except Exception as error:
            name, self._module = self._module.__name__, None
            say(f"{name} failed and gets no more: {one_line(f'{type(error).__name__}: {error}')}")


def find_tracker(kind: str) -> Any:
    """The module of this name, None for `none`. Raises UserError for another name, or where it is not installed."""
    if kind not in TRACKERS:
        raise UserError(f"No tracker '{kind}'. {did_you_mean(kind, TRACKERS)}")
    if kind == "none":
        return None
    try:
        module = import_module(kind)
        if not hasattr(module, "init"):  # a folder `wandb`, where the package is not installed
            raise ImportError(f"'{kind}' here is a folder, not the package")
        return module
    except ImportError as error:
        raise UserError(
            f"--track {kind} needs the package {kind} ({error}). Install it: pip install 'apt-bench[{kind}]'."
        ) from None


@contextmanager
def tracking(kind: str, out: Path, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """A tracked run of the folder's name; the same folder again goes on in the same one. Raises UserError where the
    tracker cannot start."""
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
