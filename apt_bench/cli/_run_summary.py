"""What `run` and `collect` print when a run has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from apt_bench.cli._grid import Grid
from apt_bench.core.status import status
from apt_bench.core.text import one_line
from apt_bench.rollout.progress import column, duration
from apt_bench.rollout.result import RunResult
from apt_bench.runs.metadata import sequential_words
from apt_bench.runs.records import EpisodeRecord
from apt_bench.suites import EpisodeKey, Suite

if TYPE_CHECKING:
    from apt_bench.analysis.stats import Estimate

OWN = EpisodeKey.prompt
"""Prompt id of an episode that was sent its cell's own instruction."""


def print_summary(result: RunResult, suite: Suite, console: Console) -> None:
    """Print success rates with intervals, and how failures ended."""
    with status("Computing rates and intervals"):
        table = summary(result.records, result.missing, suite)
    console.print(table)
    failures = failure_classes(result.records)
    if failures:
        classes = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in failures.items())
        console.print(f"Failures: {classes}.", soft_wrap=True)
    if result.sequential:
        console.print(sequential_words(result.sequential), soft_wrap=True)


def time_line(results: Sequence[RunResult]) -> str:
    """How many new episodes runs that shared their workers have, and how long these took."""
    episodes, seconds = sum(r.new for r in results), max(r.seconds for r in results)
    noun = "episode" if episodes == 1 else "episodes"
    return f"Time: {episodes} {noun} in {duration(seconds)}, {60 * episodes / max(seconds, 1e-9):.1f} per minute."


def summary(
    records: Sequence[EpisodeRecord], missing: Sequence[EpisodeKey], suite: Suite | None = None
) -> Grid:
    """One row per cell: successes, rate with its Wilson 95% interval, coverage. The average follows where the suite is
    given, then the language probes."""
    from apt_bench.analysis.stats import wilson  # scipy takes a second to import

    table = Grid("cell", "successes", "%", "95% interval", "coverage", left=1)
    keys = list(dict.fromkeys([*(r.key for r in records), *missing]))
    asked = Counter(map(column, keys))
    done = Counter(column(r.key) for r in records)
    won = Counter(column(r.key) for r in records if r.outcome == "success")
    own = list(dict.fromkeys(column(k) for k in keys if k.prompt == OWN))
    for cell in [*own, *(c for c in asked if c not in own)]:
        k, n = won[cell], done[cell]
        rate, interval = _percent(k / n, *wilson(k, n)) if n else ("", "")
        table.add(cell, f"{k}/{n}", rate, interval, f"{100 * n / asked[cell]:.0f}%")
        if suite and cell == own[-1] and (found := average(records, missing, suite)):
            table.add(f"average of {len(found[1])} cells", "", *_percent(*found[0]))
    return table


def _percent(value: float, low: float, high: float) -> tuple[str, str]:
    return f"{100 * value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"


def average(
    records: Sequence[EpisodeRecord], missing: Sequence[EpisodeKey], suite: Suite
) -> tuple[Estimate, list[str]] | None:
    """Mean over cells of the mean over tasks, as in the report, and the cells.

    The cells are the headline cells, or all where none was run. None where there is one cell only, no episode is
    finished, or a cell has too few of its episodes."""
    from apt_bench.analysis.cell_summary import COVERAGE_GATE, macro_average
    from apt_bench.analysis.frame import episode_frame

    asked = Counter(k.cell for k in (*(r.key for r in records), *missing) if k.prompt == OWN)
    cells = [c.name for c in suite.cells if c.headline and c.name in asked] or list(asked)
    counted = [r for r in records if r.key.prompt == OWN and r.key.cell in cells]
    done = Counter(r.key.cell for r in counted)
    if len(cells) < 2 or not counted or any(done[c] < COVERAGE_GATE * asked[c] for c in cells):
        return None
    return macro_average(episode_frame(counted)), cells


def failure_classes(records: Sequence[EpisodeRecord]) -> dict[str, int]:
    """How often each class of failure occurred under the cells' own prompts, the most frequent first."""
    failed = (r for r in records if r.outcome != "success" and r.key.prompt == OWN)
    return dict(Counter(one_line(r.failure or r.outcome, 60) for r in failed).most_common())


def result_card(result: RunResult, policy: str, suite: Suite) -> dict[str, Any]:
    """What `run --json` prints. Rates and bounds are shares; null where no episode is finished."""
    keys = [(k.cell, k.prompt) for k in (*(r.key for r in result.records), *result.missing)]
    own = [r for r in result.records if r.key.prompt == OWN]
    mean = average(result.records, result.missing, suite)
    return {
        "out": str(result.out),
        "policy": policy,
        "cells": [
            {"cell": cell, "prompt": prompt}
            | _counts(
                [r for r in result.records if (r.key.cell, r.key.prompt) == (cell, prompt)],
                keys.count((cell, prompt)),
            )
            for cell, prompt in dict.fromkeys(keys)
        ],
        "overall": _counts(own, sum(prompt == OWN for _, prompt in keys)),
        "average": dict(zip(("rate", "low", "high"), mean[0], strict=True)) | {"cells": mean[1]}
        if mean
        else None,
        "failures": failure_classes(result.records),
        "new_episodes": result.new,
        "seconds": round(result.seconds, 1),
        "missing": [key.id for key in result.missing],
        "stopped": result.stopped or None,
        "advice": result.advice or None,
        "sequential": result.sequential,
        "exit_code": result.exit_code,
    }


def _counts(records: Sequence[EpisodeRecord], requested: int) -> dict[str, Any]:
    from apt_bench.analysis.stats import wilson

    k, n = sum(r.outcome == "success" for r in records), len(records)
    low, high = wilson(k, n) if n else (None, None)
    return {
        "successes": k,
        "finished": n,
        "requested": requested,
        "rate": k / n if n else None,
        "low": low,
        "high": high,
    }
