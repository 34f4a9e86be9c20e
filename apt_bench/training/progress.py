"""Messages and progress bars of a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from apt_bench.core.text import plain
from apt_bench.core.tracking import Tracker

Tick = Callable[[int, int], None]
"""Called with (done, total) during a long operation."""
Say = Callable[[str], None]
"""Shows one line to the user."""

LINE_EVERY = 15.0
"""Seconds between two lines of progress where the output is not a terminal."""


class Report:
    """Shows bars on a terminal and lines elsewhere; nothing with `console=None`, as in all processes but the first."""

    def __init__(self, console: Console | None) -> None:
        self.console = console
        self.tracker = Tracker()

    def say(self, text: str) -> None:
        """Print one line."""
        if self.console:
            self.console.print(Text(plain(text)), soft_wrap=True)

    @contextmanager
    def bar(self, what: str, total: int, start: int = 0) -> Iterator[Progress]:
        """Show a bar that counts from `start` to `total`."""
        progress = Progress(self.console, what, total, start)
        try:
            yield progress
        finally:
            progress.close()

    @contextmanager
    def ticking(self, what: str) -> Iterator[Tick]:
        """Show a bar whose length is set by its first tick. Without a tick there is no bar."""
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
    """One bar with the remaining time and a note."""

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
        """Set the number of finished units."""
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
