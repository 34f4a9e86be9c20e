"""The tables behind the headline: tasks, outcomes, language, defects, controls, time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from apt_bench.analysis import stats
from apt_bench.analysis.contrasts import join, paired_contrast, unpaired_contrast
from apt_bench.analysis.run import Run, cell_label, cell_summaries, find_suite, task_numbers
from apt_bench.core.text import one_line
from apt_bench.reporting.coverage import coverage_table as coverage_table
from apt_bench.reporting.coverage import error_table as error_table
from apt_bench.reporting.coverage import missing as missing
from apt_bench.reporting.table import CELL, RUN, TASK, Column, Rate, Row, Table, Value, own_key
from apt_bench.runs.solvability import on_record
from apt_bench.suites import STALE


def _column(key: str, label: str, left: bool = False, group: str = "") -> Column:
    return Column(key, label, group, "left" if left else "right")


def task_table(runs: Sequence[Run]) -> Table:
    """Success per task, and how its failures end most often. Tasks are numbered as `apt-bench ls tasks` does; where the
    suite is not known here they have no numbers."""
    rows = []
    for run in runs:
        done = run.frame[run.frame.done]
        oracles = {s: on_record(s) for s in map(str, done.suite.unique())}
        for suite, cell in cell_summaries(run):
            oracle, numbers = oracles.get(suite, {}), task_numbers(suite, cell)
            parts = done[(done.suite == suite) & (done.cell == cell)].groupby("task", observed=True)
            for task, part in sorted(parts, key=lambda g: (numbers.get(g[0], len(numbers)), g[0])):
                failed = part[~part.success].klass.value_counts()
                often = f"{failed.index[0]} ({failed.iloc[0]})" if len(failed) and failed.iloc[0] else ""
                steps = part[part.success].steps.median()
                values: dict[str, Value] = {
                    "run": run.label, "cell": cell_label(suite, cell), "number": numbers.get(task, ""),
                    "task": task, "prompt": sent(part.prompt_text), "success": _rate(part.success),
                    "n": len(part), "steps": "" if math.isnan(steps) else f"{steps:.0f}", "failure": often,
                    "oracle": e.score if (e := oracle.get((cell, task))) else "",
                }  # fmt: skip
                rows.append(Row(values))
    columns = [RUN, CELL, _column("number", "#"), TASK, _column("prompt", "Sent prompt", True),
               _column("success", "Success"), _column("n", "Episodes"), _column("steps", "Steps to success"),
               _column("failure", "Most frequent failure", True),
               _column("oracle", "Oracle")]  # fmt: skip
    columns = [
        c for c in columns if c.key not in ("oracle", "number") or any(r.values[c.key] != "" for r in rows)
    ]
    notes = [
        "Success in %, with Wilson 95% intervals. Steps: median control steps of the successes. Oracle: what the "
        "scripted expert solved, on record."
    ]
    if any(c.key == "number" for c in columns):
        notes.append("#: the task's number in its cell, as apt-bench ls tasks and run --tasks count.")
    return Table("tasks", "Per task", columns, rows, notes, heat=True)


def sent(prompts: pd.Series) -> str:
    """The sentence that these episodes were sent; where there are several, how many, and one of them."""
    several = prompts.unique()
    shown = one_line(several[0], 200)
    return shown if len(several) == 1 else f"{len(several)} sentences, e.g. “{shown}”"


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
            values: dict[str, Value] = {own_key(n, "run", "cell"): int(counts.get(n, 0)) for n in names}
            rows.append(Row({"run": run.label, "cell": cell_label(suite, cell), **values}))
    columns = [RUN, CELL, *(_column(own_key(n, "run", "cell"), n.replace("_", " ")) for n in names)]
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
    """Each cell against its control under the same policy: the unperturbed twin, and the old sentence. The control is
    the run's own; where it has none, that of every other run of the same policy (`Run.identity`). Paired by task and
    initial state where both have them, otherwise unpaired and said so. None without any control."""
    rows = []
    for run in runs:
        others = [r for r in runs if r is not run and run.identity and r.identity == run.identity]
        for suite, cell in cell_summaries(run):
            for control in _controls(suite, cell):
                own = _drop(run, (suite, cell), run, control)
                found = [own] if own else [_drop(run, (suite, cell), r, control) for r in others]
                rows += [row for row in found if row]
    if not rows:
        return None
    columns = [RUN, CELL, _column("control", "Control", True), _column("cell_rate", "Cell"),
               _column("control_rate", "Control"), _column("drop", "Difference"), _column("pairs", "Pairs"),
               _column("p", "p")]  # fmt: skip
    notes = (
        "Cell and control are of one policy: the same class, arguments, weights and execute horizon, whatever it is "
        "called. Difference cell minus control in points, with its 95% interval: paired by task and initial state, "
        "or unpaired where there are no pairs; interval and p as in apt-bench compare. The stale control sends the "
        "old sentence to the same scene: equal scores there mean that the instruction is not read.",
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
    pairs = join(a, b, ["task", "init", "seed", "prompt"])
    if len(pairs):
        found, rates = paired_contrast("", pairs), (_rate(pairs.a), _rate(pairs.b))
    else:
        found, rates = unpaired_contrast("", [(a, b)])[0], (_rate(a.success), _rate(b.success))
    whose = "" if twin is run else f" ({twin.label})"
    return Row(
        {
            "run": run.label, "cell": cell_label(*key), "control": _control_label(key, other) + whose,
            "cell_rate": rates[0], "control_rate": rates[1], "drop": Rate.of(found.difference, signed=True),
            "pairs": len(pairs) or "unpaired", "p": pvalue(found.p),
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
    """Where the time goes, of the episodes under language probes too."""
    played = [r.frame if r.probed.empty else pd.concat([r.frame, r.probed]) for r in runs]
    parts = sorted({c for frame in played for c in frame if c.startswith("sec_")}, key=_part_order)
    rows = []
    for run, frame in zip(runs, played, strict=True):
        done = frame[frame.done]
        wall = run.info.get("wall_seconds")
        values: dict[str, Value] = {"run": run.label, "episodes": len(done), "steps": int(done.steps.sum())}
        mean = {p: float(done[p].mean()) for p in parts if p in done and done[p].notna().any()}
        values |= {p: f"{m:.2f}" for p, m in mean.items()}
        busy = sum(float(done[p].sum()) for p in mean)
        values["rate"] = f"{done.steps.sum() / busy:.0f}" if busy else ""
        if isinstance(wall, int | float) and 0 < wall < 1e12:
            values["wall"] = f"{wall / 60:.1f}"
            values["per_minute"] = f"{60 * len(frame) / wall:.1f}"
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
    return {k: v for k, v in run.info.items() if k not in ("requested", "requested_probes", "unavailable")}


def flat(card: Mapping[str, object], prefix: str = "", depth: int = 8) -> dict[str, str]:
    """Nested settings as `a.b: text`; what lies deeper than `depth` as it stands there."""
    found: dict[str, str] = {}
    for key, value in card.items():
        if isinstance(value, Mapping) and depth:
            found |= flat(value, f"{prefix}{key}.", depth - 1)
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else _json(value)
    return found


def _json(value: object) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "nested too deeply"
