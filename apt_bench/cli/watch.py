"""`apt-bench watch`: the progress of a run that another terminal started."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from apt_bench.cli._grid import Grid
from apt_bench.cli._json import AsJson, print_json
from apt_bench.core.errors import UserError
from apt_bench.core.files import is_locked, reason
from apt_bench.core.signals import stop_on_signals
from apt_bench.core.status import status
from apt_bench.core.text import plain_console
from apt_bench.rollout.progress import Counts, Progress, column, duration
from apt_bench.runs.records import EpisodeRecord, RunStore
from apt_bench.suites import EpisodeKey

POLL_SECONDS = 0.5


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("watch")(watch_command)


def watch_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    once: Annotated[bool, typer.Option("--once", help="Print the present state and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a run, from any terminal of its machine.

    The run directory is only read. The command ends when the run ends. With --json it prints the present state. Exit
    code 1: the run is not active and episodes are missing."""
    with status("Reading the run"):
        watched = WatchedRun(RunStore.open(run))
        watched.read()
    console = plain_console()
    if as_json:
        print_json(watched.card())
    else:
        if not once:
            _follow(watched, console)
        watched.print(console)
    raise typer.Exit(int(watched.state == "stopped"))


def _follow(watched: WatchedRun, console: Console) -> None:
    """Show the progress until the run ends or Ctrl-C is pressed."""
    counts = Counts("", watched.requested, ((r.key, r.outcome) for r in watched.records.values()))
    with stop_on_signals() as stopped, Progress([counts], console, lambda: [watched.last()]) as progress:
        while watched.state in ("running", "unknown") and not stopped():
            time.sleep(POLL_SECONDS)
            for record in watched.read():
                counts.ended(record)
                progress.update()
            counts.total = watched.requested


class WatchedRun:
    """What a run directory records about its run. Call `read` to bring it up to date.

    Attributes:
        records: The latest result of each episode; an error never replaces a result.
        requested: Number of requested episodes, also under language probes.
        state: `unknown` where the file system has no locks and episodes are missing; `stopped` where no process runs
            and episodes are missing.
    """

    def __init__(self, store: RunStore) -> None:
        self._store, self._end = store, 0
        self.records: dict[EpisodeKey, EpisodeRecord] = {}
        self.requested = 0
        self.state: Literal["running", "finished", "stopped", "unknown"] = "unknown"

    def read(self) -> list[EpisodeRecord]:
        """Read what was written since the last call, and return the new records.

        Raises:
            UserError: The run directory is damaged or has vanished.
        """
        try:
            locked = is_locked(self._store.path)  # before the records: after the last one the lock ends
        except OSError as error:
            raise UserError(f"Cannot read {self._store.path}: {reason(error)}.") from None
        self._run = self._store.run()
        probes = (self._run.get("requested_probes") or {}).values()
        cells = [self._run.get("requested") or {}, *probes]
        self.requested = sum(n for part in cells for tasks in part.values() for n in tasks.values())
        new = []
        for record, end in self._store.lines_from(self._end):
            self._end = end
            if record.outcome != "error" or record.key not in self.records:
                self.records[record.key] = record
                new.append(record)
        if locked:
            self.state = "running"
        elif self.done >= self.requested:
            self.state = "finished"
        else:
            self.state = "unknown" if locked is None else "stopped"
        return new

    @property
    def done(self) -> int:
        """Number of episodes with a result."""
        return sum(r.outcome != "error" for r in self.records.values())

    def last(self) -> str:
        """How long ago the last episode ended."""
        seconds = self._silence()
        return (
            "No episode has ended yet."
            if seconds is None
            else f"The last episode ended {duration(seconds)} ago."
        )

    def _silence(self) -> float | None:
        try:
            return max(0.0, time.time() - self._store.episodes_path.stat().st_mtime)
        except OSError:
            return None

    def card(self) -> dict[str, Any]:
        """The state for programs."""
        return {
            "run": str(self._store.path),
            "state": self.state,
            "requested": self.requested,
            "finished": self.done,
            "errors": len(self.records) - self.done,
            "cells": [{"cell": c, "successes": k, "finished": n} for c, (k, n) in self._cells().items()],
            "seconds_since_last_episode": self._silence(),
        }

    def _cells(self) -> dict[str, tuple[int, int]]:
        """Successes and finished episodes by cell, probes apart."""
        found: dict[str, tuple[int, int]] = {}
        for record in self.records.values():
            if record.outcome != "error":
                k, n = found.get(column(record.key), (0, 0))
                found[column(record.key)] = (k + (record.outcome == "success"), n + 1)
        return found

    def print(self, console: Console) -> None:
        """Print the state for people."""
        table = Grid("cell", "successes", "%", left=1)
        for cell, (k, n) in self._cells().items():
            table.add(cell, f"{k}/{n}", f"{100 * k / n:.0f}")
        if self.records:
            console.print(table)
        errors = len(self.records) - self.done
        lost = f", {errors} ended in an error" if errors else ""
        console.print(
            f"{self.state.capitalize()}: {self.done} of {self.requested} episodes have a result{lost}. {self.last()}",
            soft_wrap=True,
        )
        if self.state == "stopped":
            command = self._run.get("command")
            console.print(f"Rerun its command to resume{f': {command}' if command else '.'}", soft_wrap=True)
        elif self.state == "unknown":
            console.print(
                "This file system has no locks, so it is unknown whether a process writes to the run.",
                soft_wrap=True,
            )
