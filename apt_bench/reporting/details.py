"""The tables behind the headline: what is missing, tasks, outcomes, language, defects, controls, time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from apt_bench import stats
from apt_bench.reporting.data import (
    COVERAGE_GATE,
    Run,
    cell_label,
    cell_summaries,
    find_suite,
    sequential_notes,
)
from apt_bench.reporting.table import Column, Rate, Row, Table, Value, percent
from apt_bench.solvability import on_record
from apt_bench.suites import STALE

WORST = "Worst to best"
POSITIVE = ("success",)


def _column(key: str, label: str, left: bool = False, group: str = "") -> Column:
    return Column(key, label, group, "left" if left else "right")


RUN, CELL, TASK = _column("run", "Run", True), _column("cell", "Cell", True), _column("task", "Task", True)


def missing(runs: Sequence[Run]) -> list[str]:
    """What a reader must not overlook, one sentence each: episodes without a score, tasks that cannot be run, cells
    that were not run, unequal or shortened protocols, stopping rules. Empty where everything asked for is there."""
    found = sequential_notes(runs)
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
        for (suite, cell), s in summaries.items():
            name = f"{run.label}, {cell_label(suite, cell)}"
            if s.missing and not s.covered:
                low, high = s.bounds
                why = f", {s.errors} of them errors" if s.errors else ""
                found.append(
                    f"{name}: {s.missing} of {s.asked} episodes have no score{why}. With them the success rate would "
                    f"lie between {percent(low)}% and {percent(high)}%."
                )
            for task, reason in s.unavailable.items():
                found.append(f"{name}: task '{task}' cannot be run: {reason}.")
        found += [*_not_asked(run), *_same_start(run)]
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
    """Asked, done, errors, and the bounds that what is missing leaves open."""
    columns = [RUN, CELL, *(_column(k, k.capitalize()) for k in ("asked", "done", "errors", "coverage"))]
    rows = []
    for run in runs:
        for (suite, cell), s in cell_summaries(run).items():
            share = s.done / s.asked if s.asked else math.nan
            bounds = f"{percent(s.bounds[0])}–{percent(s.bounds[1])}" if s.missing else ""
            values: dict[str, Value] = {
                "run": run.label, "cell": cell_label(suite, cell), "asked": s.asked, "done": s.done,
                "errors": s.errors, "coverage": Rate(share), "bounds": bounds, "unavailable": len(s.unavailable),
            }  # fmt: skip
            rows.append(Row(values))
    columns += [_column("bounds", WORST), _column("unavailable", "Unavailable tasks")]
    note = (
        f"Errors (worker, GL, server) are missing data. A cell enters averages from {COVERAGE_GATE:.0%} coverage on. "
        f"{WORST}: success in % if all that is missing had failed, or had succeeded."
    )
    return Table("coverage", "Coverage", columns, rows, (note,))


def error_table(runs: Sequence[Run]) -> Table:
    """Every episode that ended in an error."""
    rows = [
        Row(
            {
                "run": run.label,
                "cell": e.cell,
                "task": e.task,
                "init": e.init,
                "seed": e.seed,
                "error": e.error,
            }
        )
        for run in runs
        for e in run.frame[~run.frame.done].itertuples()
    ]
    columns = [
        RUN,
        CELL,
        TASK,
        _column("init", "Init"),
        _column("seed", "Seed"),
        _column("error", "Error", True),
    ]
    return Table("errors", "Episodes that ended in an error", columns, rows)


def task_table(runs: Sequence[Run]) -> Table:
    """Success per task, and how its failures end most often."""
    rows = []
    for run in runs:
        done = run.frame[run.frame.done]
        oracle = {s: on_record(s) for s in map(str, done.suite.unique())}
        order = {key: i for i, key in enumerate(cell_summaries(run))}
        groups = done.groupby(["suite", "cell", "task"], observed=True)
        number = 0
        before: tuple[str, str] | None = None
        for (suite, cell, task), part in sorted(groups, key=lambda g: (order[g[0][:2]], g[0][2])):
            number = number + 1 if (suite, cell) == before else 1
            before = (suite, cell)
            failed = part[~part.success].klass.value_counts()
            often = f"{failed.index[0]} ({failed.iloc[0]})" if len(failed) and failed.iloc[0] else ""
            steps = part[part.success].steps.median()
            rows.append(
                Row(
                    {
                        "run": run.label, "cell": cell_label(suite, cell), "number": number, "task": task,
                        "prompt": part.prompt_text.iloc[0], "success": _rate(part.success), "n": len(part),
                        "steps": "" if math.isnan(steps) else f"{steps:.0f}", "failure": often,
                        "oracle": e.score if (e := oracle[str(suite)].get((str(cell), str(task)))) else "",
                    }
                )
            )  # fmt: skip
    columns = [RUN, CELL, _column("number", "#"), TASK, _column("prompt", "Sent prompt", True),
               _column("success", "Success"), _column("n", "Episodes"), _column("steps", "Steps to success"),
               _column("failure", "Most frequent failure", True),
               _column("oracle", "Oracle")]  # fmt: skip
    columns = [c for c in columns if c.key != "oracle" or any(r.values["oracle"] for r in rows)]
    notes = (
        "Success in %, with Wilson 95% intervals. Steps: median control steps of the successes. Oracle: what the "
        "scripted expert solved, on record.",
    )
    return Table("tasks", "Per task", columns, rows, notes, heat=True)


def _rate(flags: pd.Series) -> Rate:
    known = flags.dropna()
    k, n = int(known.astype(bool).sum()), len(known)
    return Rate(k / n, *stats.wilson(k, n), k=k, n=n) if n else Rate(math.nan)


def classes(runs: Sequence[Run]) -> list[str]:
    """Outcome classes that occur: success first, then failures by how often, then errors."""
    counts = (
        pd.concat([r.frame.klass.astype(str) for r in runs]).value_counts() if runs else pd.Series(dtype=int)
    )
    inner = [str(k) for k in counts.index if k not in ("success", "error")]
    return [*(["success"] if "success" in counts else []), *inner, *(["error"] if "error" in counts else [])]


def outcome_table(runs: Sequence[Run]) -> Table:
    """Episodes per cell and outcome class."""
    names = classes(runs)
    rows = []
    for run in runs:
        for suite, cell in cell_summaries(run):
            part = run.frame[(run.frame.suite == suite) & (run.frame.cell == cell)]
            counts = part.klass.value_counts()
            values: dict[str, Value] = {n: int(counts.get(n, 0)) for n in names}
            rows.append(Row({"run": run.label, "cell": cell_label(suite, cell), **values}))
    columns = [RUN, CELL, *(_column(n, n.replace("_", " ")) for n in names)]
    return Table("outcomes", "Outcomes", columns, rows, ("Number of episodes that ended so.",))


LANGUAGE = {
    "told": "First touch as told",
    "grasped_told": "First grasp as told",
    "memorised": "Memorised task done",
}


def language_table(runs: Sequence[Run]) -> Table | None:
    """Goes where told, and does the memorised task; None where no record can say."""
    rows = []
    for run in runs:
        done = run.frame[run.frame.done]
        for suite, cell in cell_summaries(run):
            part = done[(done.suite == suite) & (done.cell == cell)]
            values: dict[str, Value] = {k: _rate(part[k]) for k in LANGUAGE}
            if any(isinstance(v, Rate) and v.known for v in values.values()):
                first = part["first"].value_counts()
                often = ", ".join(f"{name} {n / len(part):.0%}" for name, n in first.head(2).items() if n)
                label = {"run": run.label, "cell": cell_label(suite, cell)}
                rows.append(Row({**label, **values, "success": _rate(part.success), "first": often}))
    if not rows:
        return None
    columns = [RUN, CELL, *(_column(k, label) for k, label in LANGUAGE.items())]
    columns += [_column("success", "Success"), _column("first", "Touched first most often", True)]
    notes = (
        "In % with Wilson 95% intervals. First touch as told: the first thing touched is one that the instruction is "
        "about (episodes that touch anything). First grasp as told: the first thing grasped is one that the goal wants "
        "moved. Memorised task done: the unperturbed task of the same name was fulfilled instead (only where it "
        "differs).",
    )
    return Table("language", "Does it go where it is told?", columns, rows, notes)


def defect_table(runs: Sequence[Run]) -> Table | None:
    """Scores with and without the episodes that are flagged as defective; None where none is."""
    rows = []
    for run in runs:
        done = run.frame[run.frame.done]
        for suite, cell in cell_summaries(run):
            part = done[(done.suite == suite) & (done.cell == cell)]
            flagged = part[part.defects != ""]
            if len(flagged):
                kinds = flagged.defects.str.split(", ").explode().value_counts()
                rows.append(
                    Row(
                        {
                            "run": run.label, "cell": cell_label(suite, cell), "all": _rate(part.success),
                            "without": _rate(part[part.defects == ""].success), "flagged": len(flagged),
                            "only": _rate(flagged.success),
                            "flags": ", ".join(f"{k} ({n})" for k, n in kinds.items()),
                        }
                    )
                )  # fmt: skip
    if not rows:
        return None
    columns = [RUN, CELL, _column("all", "All episodes"), _column("without", "Without flagged"),
               _column("only", "Flagged only"), _column("flagged", "Flagged"),
               _column("flags", "Flags", True)]  # fmt: skip
    notes = ("The headline counts all episodes. Flags name known defects of a task or initial state.",)
    return Table("defects", "With and without defective episodes", columns, rows, notes)


def control_table(runs: Sequence[Run]) -> Table | None:
    """Each cell against its control under the same policy: the unperturbed twin, and the old sentence. Paired by task
    and initial state where both have them, otherwise unpaired and said so. None without any control."""
    rows = []
    for run in runs:
        twins = [r for r in runs if r.frame.policy.unique().tolist() == run.frame.policy.unique().tolist()]
        for suite, cell in cell_summaries(run):
            for other_suite, other in _controls(suite, cell):
                for twin in twins:
                    row = _drop(run, (suite, cell), twin, (other_suite, other))
                    if row:
                        rows.append(row)
    if not rows:
        return None
    columns = [RUN, CELL, _column("control", "Control", True), _column("cell_rate", "Cell"),
               _column("control_rate", "Control"), _column("drop", "Difference"), _column("pairs", "Pairs"),
               _column("p", "p")]  # fmt: skip
    notes = (
        "Difference cell minus control in points, with its 95% interval: paired by task and initial state (Newcombe's "
        "paired interval, exact McNemar p), or unpaired where there are no pairs (Newcombe, Fisher). The stale control "
        "sends the old sentence to the same scene: equal scores there mean that the instruction is not read.",
    )
    return Table("controls", "Against the controls", columns, rows, notes)


def _controls(suite: str, cell: str) -> list[tuple[str, str]]:
    known = find_suite(suite)
    control = next((c.control for c in known.cells if c.name == cell), None) if known else None
    found = [(suite, cell + STALE)]
    if control:
        name, _, twin = control.partition(":")
        found.append((name, twin))
    return found


def _drop(run: Run, key: tuple[str, str], twin: Run, other: tuple[str, str]) -> Row | None:
    sides = []
    for source, (suite, cell) in ((run, key), (twin, other)):
        frame = source.frame
        sides.append(frame[(frame.suite == suite) & (frame.cell == cell) & frame.done])
    a, b = sides
    if not len(a) or not len(b):
        return None
    join = ["task", "init", "seed", "prompt"]
    pairs = a[[*join, "success"]].merge(b[[*join, "success"]], on=join, suffixes=("_a", "_b"))
    if len(pairs):
        both = int((pairs.success_a & pairs.success_b).sum())
        up, down = (
            int((pairs.success_a & ~pairs.success_b).sum()),
            int((~pairs.success_a & pairs.success_b).sum()),
        )
        interval = stats.newcombe_paired(both, up, down, len(pairs) - both - up - down)
        rates, p, n = (
            (_rate(pairs.success_a), _rate(pairs.success_b)),
            stats.mcnemar(up, down),
            f"{len(pairs)}",
        )
    else:
        counts = int(a.success.sum()), len(a), int(b.success.sum()), len(b)
        interval = stats.newcombe(*counts)
        rates, p, n = (_rate(a.success), _rate(b.success)), stats.fisher(*counts), "unpaired"
    return Row(
        {
            "run": run.label, "cell": cell_label(*key), "control": _control_label(key, other), "cell_rate": rates[0],
            "control_rate": rates[1], "drop": Rate(rates[0].value - rates[1].value, *interval, signed=True),
            "pairs": n, "p": pvalue(p),
        }
    )  # fmt: skip


def _control_label(key: tuple[str, str], other: tuple[str, str]) -> str:
    """The control's cell; with its suite where that is another one, for their cells may share a name."""
    suite = find_suite(other[0])
    away = f"{suite.title if suite else other[0]} " if other[0] != key[0] else ""
    return away + cell_label(*other)


def pvalue(p: float) -> str:
    """For people: three digits, never `0`."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def throughput_table(runs: Sequence[Run]) -> Table:
    """Where the time goes."""
    parts = sorted({c for r in runs for c in r.frame if c.startswith("sec_")}, key=_part_order)
    rows = []
    for run in runs:
        done = run.frame[run.frame.done]
        wall = run.info.get("wall_seconds")
        values: dict[str, Value] = {"run": run.label, "episodes": len(done), "steps": int(done.steps.sum())}
        mean = {p: float(done[p].mean()) for p in parts if p in done and done[p].notna().any()}
        values |= {p: f"{m:.2f}" for p, m in mean.items()}
        busy = sum(float(done[p].sum()) for p in mean)
        values["rate"] = f"{done.steps.sum() / busy:.0f}" if busy else ""
        if isinstance(wall, int | float) and wall > 0:
            values["wall"] = f"{wall / 60:.1f}"
            values["per_minute"] = f"{60 * len(run.frame) / wall:.1f}"
        rows.append(Row(values))
    columns = [RUN, _column("episodes", "Episodes"), _column("steps", "Control steps"),
               *(_column(p, p.removeprefix("sec_"), group="Seconds per episode") for p in parts),
               _column("rate", "Steps per busy second"), _column("wall", "Wall clock, min"),
               _column("per_minute", "Episodes per min")]  # fmt: skip
    columns = [c for c in columns if c.key in ("run", *parts) or any(r.values.get(c.key) for r in rows)]
    return Table("throughput", "Time", columns, rows)


def _part_order(name: str) -> int:
    parts = ["sec_reset", "sec_physics", "sec_render", "sec_policy", "sec_wait"]
    return parts.index(name) if name in parts else len(parts)


def card_table(runs: Sequence[Run], which: str) -> Table:
    """The protocol cards (`protocol`), or what ran them (`run`), side by side."""
    cards = [flat(r.protocol if which == "protocol" else _circumstances(r)) for r in runs]
    keys = list(dict.fromkeys(k for card in cards for k in card))
    columns = [_column("key", "", True), *(_column(str(i), r.label, True) for i, r in enumerate(runs))]
    rows = [Row({"key": k, **{str(i): c.get(k, "") for i, c in enumerate(cards)}}) for k in keys]
    if len(runs) > 1:  # what differs comes first: it is what a reader looks for
        rows.sort(key=lambda r: len({r.values[str(i)] for i in range(len(runs))}) == 1)
    title = "Protocol" if which == "protocol" else "What ran it"
    return Table("card_" + which, title, columns, rows)


def _circumstances(run: Run) -> dict[str, object]:
    return {k: v for k, v in run.info.items() if k not in ("requested", "unavailable")}


def flat(card: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b: text`."""
    found: dict[str, str] = {}
    for key, value in card.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found
