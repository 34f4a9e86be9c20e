"""What was asked for and is not there: in sentences, and as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from apt_bench.analysis.run import (
    COVERAGE_GATE,
    CellSummary,
    Run,
    cell_label,
    cell_summaries,
    find_suite,
    probe_summaries,
    sequential_notes,
    suite_order,
)
from apt_bench.reporting.table import CELL, RUN, TASK, Column, Rate, Row, Table, Value, percent

WORST = "Worst to best"
OWN = "own"
"""Stands in a coverage table for a cell's own prompt."""


def missing(runs: Sequence[Run]) -> list[str]:
    """What a reader must not overlook, one sentence each: runs that are not finished, episodes without a score, tasks
    that cannot be run, cells that were not run, unequal or shortened protocols, stopping rules. Empty where everything
    asked for is there."""
    found = [s for run in runs for s in _unfinished(run)] + sequential_notes(runs)
    for run in runs:
        summaries = cell_summaries(run)
        if not summaries:
            found.append(f"{run.label}: no episode was asked for and none is recorded.")
        few = [s for s in summaries.values() if s.missing and s.covered]
        if few:
            lost, asked = sum(s.missing for s in few), sum(s.asked for s in few)
            found.append(
                f"{run.label}: {lost} of {asked} episodes have no score, {sum(s.errors for s in few)} of them errors "
                f"({', '.join(s.label for s in few)}; each cell has at least {COVERAGE_GATE:.0%} of its episodes)."
            )
        for s in summaries.values():
            name = f"{run.label}, {s.label}"
            if s.missing and not s.covered:
                low, high = s.bounds
                why = f", {s.errors} of them errors" if s.errors else ""
                found.append(
                    f"{name}: {s.missing} of {s.asked} episodes have no score{why}. With them the success rate would "
                    f"lie between {percent(low)}% and {percent(high)}%."
                )
            for task, reason in s.unavailable.items():
                found.append(f"{name}: task '{task}' cannot be run: {reason}.")
        found += [*_probes(run), *_not_asked(run), *_same_start(run)]
    return found


def progress(summaries: Iterable[CellSummary]) -> tuple[int, int, int]:
    """Of several cells together: episodes asked for, with a score, and ended in an error."""
    parts = list(summaries)
    return sum(max(s.asked, s.done) for s in parts), sum(s.done for s in parts), sum(s.errors for s in parts)


def _unfinished(run: Run) -> list[str]:
    own, probed = (
        progress(cell_summaries(run).values()),
        progress(probe_summaries(run).values()),
    )
    waiting, also = (max(0, asked - done - errors) for asked, done, errors in (own, probed))
    if not waiting + also:
        return []
    under = f", {also} of them under language probes" if also else ""
    return [
        f"{run.label} is not finished: {waiting + also} of {own[0] + probed[0]} episodes that were asked for have not "
        f"run{under}. The same command goes on."
    ]


def _probes(run: Run) -> list[str]:
    """A sentence for each language probe whose episodes have not all a score."""
    found = []
    summaries = probe_summaries(run)
    for probe in dict.fromkeys(p for _, _, p in summaries):
        mine = [s for (_, _, name), s in summaries.items() if name == probe]
        if lost := sum(s.missing for s in mine):
            where = ", ".join(f"{s.label} {s.missing} of {s.asked}" for s in mine if s.missing)
            errors = sum(s.errors for s in mine)
            why = f", {errors} of them errors" if errors else ""
            found.append(
                f"{run.label}, language probe {probe}: {lost} of {sum(s.asked for s in mine)} episodes have no score"
                f"{why} ({where})."
            )
    return found


def _same_start(run: Run) -> list[str]:
    """Tasks in which several initial states are the same one: its episodes are not that many observations."""
    known = run.frame[(run.frame.start_hash != "") & run.frame.done]
    groups = known.groupby(["suite", "cell", "task"], observed=True)
    counts = groups[["init", "start_hash"]].nunique()
    return [
        f"{run.label}, {cell_label(str(suite), str(cell))}: task '{task}' has {row.init} initial states, of which only "
        f"{row.start_hash} differ."
        for (suite, cell, task), row in counts[counts.start_hash < counts.init].iterrows()
    ]


def _not_asked(run: Run) -> list[str]:
    """Headline cells that were left out, and fewer initial states than the protocol means."""
    found = []
    for name in sorted({s for s, _ in run.asked}):
        suite = find_suite(name)
        if suite is None:
            continue
        absent = [c.label for c in suite.cells if c.headline and (name, c.name) not in run.asked]
        if absent:
            found.append(f"{run.label}: not asked for in {suite.title}: {', '.join(absent)}.")
        noted = run.info.get("requested")
        counts = [
            n
            for cell, tasks in (noted.items() if isinstance(noted, Mapping) else ())
            if (name, cell) in run.asked and isinstance(tasks, Mapping)
            for n in tasks.values()
            if isinstance(n, int)
        ]
        if counts and min(counts) < suite.episodes:
            most = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
            states = "state" if most == "1" else "states"
            found.append(
                f"{run.label}: {most} initial {states} per task instead of the {suite.episodes} that "
                f"{suite.title} means: intervals are wide"
                + (", and published rows rest on more." if suite.published else ".")
            )
    return found


def coverage_table(runs: Sequence[Run]) -> Table:
    """Asked, done, errors, and the bounds that what is missing leaves open; language probes in rows of their own."""
    rows = []
    for run in runs:
        found = [(key, OWN, s) for key, s in cell_summaries(run).items()]
        found += [(key[:2], key[2], s) for key, s in probe_summaries(run).items()]
        rows += [_row(run, prompt, s) for _, prompt, s in sorted(found, key=lambda f: suite_order(f[0]))]
    columns = [RUN, CELL]
    if any(r.values["sentence"] != OWN for r in rows):
        columns.append(Column("sentence", "Prompt", align="left"))
    names = {"asked": "Asked", "done": "Done", "errors": "Errors", "coverage": "Coverage, %"}
    columns += [Column(k, label, align="right") for k, label in names.items()]
    columns += [
        Column("bounds", WORST, align="right"),
        Column("unavailable", "Unavailable tasks", align="right"),
    ]
    note = (
        "Asked: what the run was asked for, run or not. Errors (worker, GL, server) are missing data. A cell enters "
        f"averages from {COVERAGE_GATE:.0%} coverage on. {WORST}: success in % if all that is missing had failed, or "
        "had succeeded."
    )
    return Table("coverage", "Coverage", columns, rows, (note,))


def _row(run: Run, sentence: str, s: CellSummary) -> Row:
    bounds = f"{percent(s.bounds[0])}–{percent(s.bounds[1])}" if s.missing else ""
    values: dict[str, Value] = {
        "run": run.label, "cell": s.label, "sentence": sentence, "asked": s.asked, "done": s.done,
        "errors": s.errors, "coverage": Rate(s.done / s.asked if s.asked else math.nan), "bounds": bounds,
        "unavailable": len(s.unavailable),
    }  # fmt: skip
    return Row(values)


def error_table(runs: Sequence[Run]) -> Table:
    """Every episode that ended in an error, those under language probes included."""
    rows = [
        Row(
            {"run": run.label, "cell": cell_label(str(e.suite), str(e.cell)), "task": e.task, "init": e.init,
             "seed": e.seed, "prompt": e.prompt, "error": e.error}
        )
        for run in runs
        for frame in (run.frame, run.probed)
        for e in frame[~frame.done].itertuples()
    ]  # fmt: skip
    columns = [RUN, CELL, TASK, Column("init", "Init", align="right"), Column("seed", "Seed", align="right"),
               Column("prompt", "Prompt", align="left"), Column("error", "Error", align="left")]  # fmt: skip
    return Table("errors", "Episodes that ended in an error", columns, rows)
