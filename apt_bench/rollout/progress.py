"""The progress of a run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.align import Align
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from apt_bench.core.text import literal, one_line
from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout.schedule import Schedule
from apt_bench.runs.records import EpisodeRecord
from apt_bench.suites import EpisodeKey

LINE_EVERY = 10.0
"""Least number of seconds between two plain lines."""

WORKERS = 4
"""Number of workers whose episodes are shown."""


class Counts:
    """Counts the episodes of one run.

    Args:
        policy: Name of its policy.
        total: Number of requested episodes.
        earlier: Requested episodes that earlier commands recorded, and their outcomes.
    """

    def __init__(self, policy: str, total: int, earlier: Iterable[tuple[EpisodeKey, str]]) -> None:
        self.policy, self.total = policy, total
        self.done: Counter[str] = Counter()
        self.won: Counter[str] = Counter()
        self.lost: set[EpisodeKey] = set()
        self.new = 0
        for key, outcome in earlier:
            self._count(key, outcome)

    def ended(self, record: EpisodeRecord) -> None:
        """Count an episode that was recorded."""
        self._count(record.key, record.outcome)
        self.new += 1

    def metrics(self, record: EpisodeRecord) -> dict[str, float]:
        """Metrics for a tracker after an episode: success rate and episodes of its cell so far, and its length."""
        name = column(record.key)
        values: dict[str, float] = {"episodes": self.done.total(), "errors": len(self.lost)}
        if record.outcome != "error":
            rate = self.won[name] / self.done[name]
            values |= {
                f"success/{name}": rate,
                f"episodes/{name}": self.done[name],
                f"steps/{name}": record.steps,
            }
        return values

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """The final table for a tracker: heading and rows, rates with Wilson's 95% interval."""
        from apt_bench.analysis.stats import wilson  # scipy takes a second to import

        rows = [
            [name, self.won[name], n, self.won[name] / n, *wilson(self.won[name], n)]
            for name, n in self.done.items()
        ]
        return ["cell", "successes", "episodes", "rate", "low", "high"], rows

    def _count(self, key: EpisodeKey, outcome: str) -> None:
        if outcome == "error":
            self.lost.add(key)
        else:
            self.lost.discard(key)  # a later attempt has a result
            self.done[column(key)] += 1
            self.won[column(key)] += outcome == "success"


class Progress:
    """Shows the progress of one run, or of several that share workers.

    Args:
        runs: The counts of each run.
        console: Where to show the progress.
        notes: Gives the lines that the live display shows below the bar.
    """

    def __init__(
        self, runs: Sequence[Counts], console: Console, notes: Callable[[], Iterable[str]] = tuple
    ) -> None:
        self._runs = runs
        self._console = console
        self._notes = notes
        self._retries = 0
        self._start = self._last = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self.view, console=self._console, refresh_per_second=2, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        elif any(run.new for run in self._runs):
            self._print(self.line())

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def update(self) -> None:
        """Show that an episode was counted."""
        now = time.monotonic()
        if not self._live and now - self._last >= LINE_EVERY:
            self._last = now
            self._print(self.line())

    def retrying(self, episode: str, why: str) -> None:
        """Show that an episode will be run again."""
        self._retries += 1
        self._print(f"Retrying {episode}: {one_line(why)}", "yellow")

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(literal(text, style), soft_wrap=True)

    def line(self) -> str:
        """The counts of all runs, the pace and the time left in one line."""
        total, done, won, errors, new = (
            sum(each)
            for each in zip(
                *((r.total, r.done.total(), r.won.total(), len(r.lost), r.new) for r in self._runs),
                strict=True,
            )
        )
        words = [f"{done}/{total} done", f"{won} successes"]
        if errors or self._retries:
            words.append(f"{errors} errors ({self._retries} retried)")
        rate = new / max(1e-9, self.seconds)
        if new:
            left = max(0, total - done - errors)
            words += [f"{60 * rate:.1f} episodes/min", f"{duration(left / rate)} left"]
        return ", ".join(words)

    def view(self) -> RenderableType:
        """Successes per cell, or per run where there are several, a bar, and what runs now."""
        rows = Table.grid(padding=(0, 2))
        if len(self._runs) == 1:
            run = self._runs[0]
            counts = [(cell, run.won[cell], done) for cell, done in run.done.items()]
        else:
            counts = [(run.policy, run.won.total(), run.done.total()) for run in self._runs]
        for name, won, done in counts:
            rate = f"{100 * won / done:.0f}%" if done else ""
            rows.add_row(literal(name), literal(f"{won}/{done}"), literal(rate))
        total = sum(run.total for run in self._runs)
        completed = sum(run.done.total() + len(run.lost) for run in self._runs)
        bar = ProgressBar(total=max(1, total), completed=completed, width=60)
        return Group(rows, Align.left(bar), literal(self.line()), *map(literal, self._notes()))


def running(schedule: Schedule) -> list[str]:
    """The number of scenes so far, and the episodes that run now."""
    keys = [job.spec.key for job in schedule.current.values()]
    if not keys:
        return []
    begun, total = schedule.scenes
    lines = [f"Running: {k.cell}, {k.task}, initial state {k.init}" for k in keys[:WORKERS]]
    more = [f"and {len(keys) - WORKERS} more"] if len(keys) > WORKERS else []
    return [f"Scene {begun} of {total}", *(one_line(line, 76) for line in lines), *more]


def loading(ref: PolicyRef) -> str:
    """Words for the status while a policy is loaded, with the size of its file."""
    if ref.servers:
        return f"Connecting to the server of policy '{ref.name}'"
    path = ref.args.get(ref.file) if ref.file else None
    try:
        files = [f for p in [Path(str(path))] for f in (p, *p.rglob("*")) if f.is_file()] if path else []
        size = sum(f.stat().st_size for f in files) / 1e6
    except (OSError, ValueError):
        size = 0.0
    return f"Loading policy '{ref.name}'" + (f" ({size:.0f} MB)" if size >= 1 else "")


def column(key: EpisodeKey) -> str:
    """The name under which an episode is counted: its cell, and its probe if it has one."""
    return key.cell if key.prompt == "default" else f"{key.cell} ({key.prompt})"


def duration(seconds: float) -> str:
    """A duration as `40 s`, `12 min` or `3 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
