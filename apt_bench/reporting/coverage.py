"""What was requested and has no result: as sentences, and as tables of coverage and errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

from apt_bench.analysis.cell_summary import COVERAGE_GATE, CellSummary, cell_summaries, probe_summaries
from apt_bench.analysis.run import Run, sequential_notes
from apt_bench.analysis.suite_labels import cell_label, find_suite, suite_order, task_numbers
from apt_bench.core.text import one_line
from apt_bench.core.wording import in_words
from apt_bench.reporting.published import PAPER_SUITE
from apt_bench.reporting.table import CELL, NUMBERS, RUN, TASK, Rate, Row, Table, Value, left, percent, right

WORST = "Worst to best"
OWN = "own"
"""A cell's own prompt in the table of coverage; other rows are language probes."""


def missing(runs: Sequence[Run]) -> list[str]:
    """What limits these runs, one sentence each.

    They name unfinished runs, stopping rules, episodes without a result, tasks that cannot be run, headline cells that
    were not requested, fewer initial states than the suite defines, and equal initial states.
    """
    found = [s for run in runs for s in _unfinished(run)] + sequential_notes(runs)
    for run in runs:
        summaries = cell_summaries(run)
        if not summaries:
            found.append(f"{run.label}: no episode was requested and none is recorded.")
        few = [s for s in summaries.values() if s.missing and s.covered]
        if few:
            lost, requested = sum(s.missing for s in few), sum(s.requested for s in few)
            found.append(
                f"{run.label}: {lost} of {requested} episodes have no result, {sum(s.errors for s in few)} of them "
                f"errors ({', '.join(s.label for s in few)}; each cell has at least {COVERAGE_GATE:.0%} of its "
                "episodes)."
            )
        for s in summaries.values():
            name = f"{run.label}, {s.label}"
            if s.missing and not s.covered:
                low, high = s.bounds
                why = f", {s.errors} of them errors" if s.errors else ""
                found.append(
                    f"{name}: {s.missing} of {s.requested} episodes have no result{why}. With them, the success rate "
                    f"would be between {percent(low)}% and {percent(high)}%."
                )
            for task, reason in s.unavailable.items():
                found.append(f"{name}: task '{in_words(str(task))}' cannot be run: {reason}.")
        found += [*_probes(run), *_not_requested(run), *_same_start(run)]
    return found


def progress(summaries: Iterable[CellSummary]) -> tuple[int, int, int]:
    """Numbers of requested and finished episodes and of errors, over several cells."""
    parts = list(summaries)
    requested = sum(max(s.requested, s.finished) for s in parts)
    return requested, sum(s.finished for s in parts), sum(s.errors for s in parts)


def _unfinished(run: Run) -> list[str]:
    own, probed = (
        progress(cell_summaries(run).values()),
        progress(probe_summaries(run).values()),
    )
    waiting, also = (max(0, requested - finished - errors) for requested, finished, errors in (own, probed))
    if not waiting + also:
        return []
    under = f", {also} of them under language probes" if also else ""
    return [
        f"{run.label} is not finished: {waiting + also} of {own[0] + probed[0]} requested episodes have not run"
        f"{under}. Rerun the same command to resume."
    ]


def _probes(run: Run) -> list[str]:
    """A sentence for each language probe with episodes that have no result."""
    found = []
    summaries = probe_summaries(run)
    for probe in dict.fromkeys(p for _, _, p in summaries):
        mine = [s for (_, _, name), s in summaries.items() if name == probe]
        if lost := sum(s.missing for s in mine):
            requested, errors = sum(s.requested for s in mine), sum(s.errors for s in mine)
            where = ", ".join(f"{s.label} {s.missing} of {s.requested}" for s in mine if s.missing)
            why = f", {errors} of them errors" if errors else ""
            found.append(
                f"{run.label}, language probe {probe}: {lost} of {requested} episodes have no result{why}"
                + (f" ({where})." if lost < requested else ".")
            )
    return found


def _same_start(run: Run) -> list[str]:
    """A sentence for each task with equal initial states, whose episodes are fewer independent observations."""
    known = run.frame[(run.frame.start_hash != "") & run.frame.finished]
    groups = known.groupby(["suite", "cell", "task"], observed=True)
    counts = groups[["init", "start_hash"]].nunique()
    return [
        f"{run.label}, {cell_label(str(suite), str(cell))}: task '{in_words(str(task))}' has {row.init} initial "
        f"states, but only {row.start_hash} different ones."
        for (suite, cell, task), row in counts[counts.start_hash < counts.init].iterrows()
    ]


def _not_requested(run: Run) -> list[str]:
    """Headline cells that were left out, and fewer initial states than the suite defines."""
    found = []
    for name in sorted({s for s, _ in run.requested}):
        suite = find_suite(name)
        if suite is None:
            continue
        absent = [c.label for c in suite.cells if c.headline and (name, c.name) not in run.requested]
        if absent:
            found.append(f"{run.label}: not requested in {suite.title}: {', '.join(absent)}.")
        noted = run.info.get("requested")
        counts = [
            n
            for cell, tasks in (noted.items() if isinstance(noted, Mapping) else ())
            if (name, cell) in run.requested and isinstance(tasks, Mapping)
            for n in tasks.values()
            if isinstance(n, int)
        ]
        if counts and min(counts) < suite.episodes:
            most = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
            states = "state" if most == "1" else "states"
            found.append(
                f"{run.label}: {most} initial {states} per task instead of the {suite.episodes} of {suite.title}. "
                "Intervals are wider"
                + (", and published rows are based on more." if name == PAPER_SUITE else ".")
            )
    return found


def unpinned(runs: Sequence[Run]) -> Iterator[str]:
    """A sentence for each run with --unpinned, which ran on another simulator than the suite's."""
    for run in runs:
        marks = run.info.get("unpinned")
        if isinstance(marks, list) and marks:
            yield (
                f"{run.label} was not run on the suite's own simulator (--unpinned), so its scores are not comparable: "
                f"the suite is {'; it is '.join(map(str, marks))}."
            )


def canary_warnings(runs: Sequence[Run]) -> Iterator[str]:
    """A sentence for each warning of the check of a policy's server, see `policies/canaries.py`."""
    for run in runs:
        warnings = run.info.get("canaries", {}).get("warnings")
        for warning in warnings if isinstance(warnings, list) else ():
            yield f"{run.label}, before the first episode: {one_line(warning, 300)}"


def coverage_table(runs: Sequence[Run]) -> Table:
    """Requested and finished episodes and errors per cell, with bounds on the success rate; one row per probe."""
    rows = []
    for run in runs:
        found = [(key, OWN, s) for key, s in cell_summaries(run).items()]
        found += [(key[:2], key[2], s) for key, s in probe_summaries(run).items()]
        rows += [_row(run, prompt, s) for _, prompt, s in sorted(found, key=lambda f: suite_order(f[0]))]
    columns = [RUN, CELL]
    if any(r.values["prompt"] != OWN for r in rows):
        columns.append(left("prompt", "Prompt"))
    columns += [
        right("requested", "Requested"), right("finished", "Finished"), right("errors", "Errors"),
        right("coverage", "Coverage, %"), right("bounds", WORST), right("unavailable", "Unavailable tasks"),
    ]  # fmt: skip
    note = (
        "Requested: episodes of the run's commands, whether they ran or not. Errors (of a worker, the GL context "
        f"or a server) are missing data. A cell enters averages if its coverage is at least {COVERAGE_GATE:.0%}. "
        f"{WORST}: success in % if every missing episode failed, and if every one succeeded."
    )
    return Table("coverage", "Coverage", columns, rows, (note,))


def _row(run: Run, prompt: str, s: CellSummary) -> Row:
    bounds = f"{percent(s.bounds[0])}–{percent(s.bounds[1])}" if s.missing else ""
    values: dict[str, Value] = {
        "run": run.label, "cell": s.label, "prompt": prompt, "requested": s.requested, "finished": s.finished,
        "errors": s.errors, "coverage": Rate(s.coverage), "bounds": bounds, "unavailable": len(s.unavailable),
    }  # fmt: skip
    return Row(values)


def error_table(runs: Sequence[Run]) -> Table:
    """Every episode that ended in an error, including those under language probes."""
    numbers = cache(task_numbers)
    rows = [
        Row(
            {"run": run.label, "cell": cell_label(str(e.suite), str(e.cell)),
             "number": numbers(str(e.suite), str(e.cell)).get(str(e.task), ""), "task": e.task, "init": e.init,
             "seed": e.seed, "prompt": e.prompt, "error": e.error}
        )
        for run in runs
        for frame in (run.frame, run.probed)
        for e in frame[~frame.finished].itertuples()
    ]  # fmt: skip
    numbered = any(r.values["number"] != "" for r in rows)
    columns = [
        RUN, CELL, *([right("number", "#")] if numbered else []), TASK, right("init", "Init"), right("seed", "Seed"),
        left("prompt", "Prompt"), left("error", "Error"),
    ]  # fmt: skip
    notes = (NUMBERS,) if numbered else ()
    return Table("errors", "Episodes that ended in an error", columns, rows, notes, paper=False)
