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
    """What limits these runs, one sentence per cause. Runs with the same sentence share it.

    They name unfinished runs, stopping rules, episodes without a result, tasks that cannot be run, headline cells that
    were not requested, fewer initial states than the suite defines, and equal initial states.
    """
    found = [s for run in runs for s in _unfinished(run)] + sequential_notes(runs)
    labels: dict[str, list[str]] = {}
    for run in runs:
        for sentence in (*_without_result(run), *_probes(run), *_unavailable(run), *_not_requested(run),
                         *_same_start(run)):  # fmt: skip
            labels.setdefault(sentence, []).append(run.label)
    return found + [f"{listed(names)}: {sentence}" for sentence, names in labels.items()]


def listed(names: Sequence[str]) -> str:
    """Names as `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _without_result(run: Run) -> Iterator[str]:
    """A sentence about cells with few missing episodes, and one about cells with many."""
    summaries = cell_summaries(run).values()
    if not summaries:
        yield "no episode was requested and none is recorded."
    few, many = ([s for s in summaries if s.missing and s.covered == covered] for covered in (True, False))
    for group in filter(None, (few, many)):
        lost, requested, errors = (
            sum(getattr(s, n) for s in group) for n in ("missing", "requested", "errors")
        )
        why = f", {errors} of them errors" if errors else ""
        where = ", ".join(f"{s.label} {s.missing} of {s.requested}" for s in group)
        text = f"{lost} of {requested} episodes have no result{why} ({where})."
        if group is few:
            text += (
                f" Each of these cells has at least {COVERAGE_GATE:.0%} of its episodes and enters averages."
            )
        elif len(group) == 1:
            low, high = group[0].bounds
            text += f" With them, its success rate would be between {percent(low)}% and {percent(high)}%."
        else:
            text += " The table of coverage shows how much they could change each success rate."
        yield text


def _unavailable(run: Run) -> Iterator[str]:
    """A sentence for each reason why tasks cannot be run."""
    reasons: dict[str, list[str]] = {}
    for s in cell_summaries(run).values():
        for task, reason in s.unavailable.items():
            reasons.setdefault(str(reason), []).append(f"{s.label} '{in_words(str(task))}'")
    for reason, tasks in reasons.items():
        noun = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
        yield f"{noun} cannot be run: {reason} ({', '.join(tasks)})."


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
    under = f", {also if waiting else 'all'} of them under language probes" if also else ""
    return [
        f"{run.label} is not finished: {waiting + also} of {own[0] + probed[0]} requested episodes have not run"
        f"{under}. Rerun the same command to resume."
    ]


def _probes(run: Run) -> Iterator[str]:
    """A sentence about the episodes under language probes that have no result."""
    summaries = probe_summaries(run)
    if not (lost := sum(s.missing for s in summaries.values())):
        return
    requested, errors = (sum(getattr(s, n) for s in summaries.values()) for n in ("requested", "errors"))
    why = f", {errors} of them errors" if errors else ""
    where = []
    for probe in dict.fromkeys(p for _, _, p in summaries):
        mine = [s for (_, _, name), s in summaries.items() if name == probe]
        if few := sum(s.missing for s in mine):
            where.append(f"{probe} {few} of {sum(s.requested for s in mine)}")
    yield f"{lost} of {requested} episodes under language probes have no result{why} ({', '.join(where)})."


def _same_start(run: Run) -> Iterator[str]:
    """A sentence about tasks with equal initial states, whose episodes are fewer independent observations."""
    known = run.frame[(run.frame.start_hash != "") & run.frame.finished]
    groups = known.groupby(["suite", "cell", "task"], observed=True)
    counts = groups[["init", "start_hash"]].nunique()
    same = counts[counts.start_hash < counts.init]
    if len(same):
        noun = "1 task has" if len(same) == 1 else f"{len(same)} tasks have"
        where = ", ".join(
            f"{cell_label(str(suite), str(cell))} '{in_words(str(task))}' {row.start_hash} of {row.init}"
            for (suite, cell, task), row in same.head(10).iterrows()
        )
        more = f", and {len(same) - 10} more" if len(same) > 10 else ""
        yield f"{noun} equal initial states among their own. Different ones: {where}{more}."


def _not_requested(run: Run) -> Iterator[str]:
    """Headline cells that were left out, and fewer initial states than the suite defines."""
    for name in sorted({s for s, _ in run.requested}):
        suite = find_suite(name)
        if suite is None:
            continue
        absent = [c.label for c in suite.cells if c.headline and (name, c.name) not in run.requested]
        if absent:
            yield f"these cells of {suite.title} were not requested: {', '.join(absent)}."
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
            yield (
                f"{most} initial {states} per task instead of the {suite.episodes} of {suite.title}. "
                "Intervals are wider"
                + (", and published rows are based on more." if name == PAPER_SUITE else ".")
            )


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
