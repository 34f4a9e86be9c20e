"""The headline tables, laid out as in the paper: measured rows first, then the paper's rows, which are marked."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pandas as pd

from apt_bench.analysis.cell_summary import COVERAGE_GATE, CellSummary, cell_summaries, macro_average
from apt_bench.analysis.run import Run
from apt_bench.analysis.suite_labels import cell_label, find_suite, suite_order, suite_title
from apt_bench.core.config import read_yaml
from apt_bench.core.paths import data_dir
from apt_bench.core.text import file_name, one_line
from apt_bench.reporting.glossary import GLOSSARY
from apt_bench.reporting.published import PAPER_SUITE, SOURCE, PublishedRow, is_published, published
from apt_bench.reporting.table import NONE, PUBLISHED, Column, Rate, Row, Table, Value, left, own_key
from apt_bench.runs.protocol import differing_settings, in_short, policy_settings
from apt_bench.suites.suite import ENVIRONMENTS

PUBLISHED_NOTE = f"{PUBLISHED} Published in {SOURCE}, not measured here; the paper gives no intervals."
NOT_COMPARABLE = (
    "The paper measured these rows on its own test, with other robots, scenes and objects, which is not published. "
    "They are no baseline for the measured rows."
)
ABOUT_RESULTS = (
    "Success, in % of the episodes: the robot did what its instruction says. Below each rate are its 95% interval and "
    "the counts, successes/episodes."
)
INTERVAL_NOTE = "Success in %, with Wilson's 95% intervals."
AVERAGE_NOTE = "Avg is the mean of the cells, with a task-clustered bootstrap interval."
OWN_CHOICE = (
    "Each policy chooses its cameras, and how many actions it executes per decision. These settings are no part of the "
    "test, so the scores are comparable. They differ: "
)
INCOMPLETE = "*"
TICK, CROSS = "✓", "✗"
TICKS = {"knowledge_insulation": "KI", "two_stage": "2-Stage", "finetune_vlm": "Ft VLM"}
TICKS_NOTE = (
    f"How the policy was trained: KI with knowledge insulation, 2-Stage first without and then with language, Ft VLM "
    f"with a fine-tuned vision-language model. {TICK} yes, {CROSS} no, ? not stated, empty: does not apply."
)
SCORES = {"t1": "T1", "t2": "T2", "t1_t2": "T1+T2"}


def suite_tables(runs: Sequence[Run], suite: str, with_published: bool = True) -> list[Table]:
    """The headline table of a suite, and a table of its other cells where runs have any.

    Args:
        runs: Runs of this and other suites.
        suite: The suite's name.
        with_published: Add the paper's rows to the headline table. They are never beside measured rows of an open
            equivalent of the paper's test.

    Returns:
        One or two tables.
    """
    keys = {key for run in runs for key in run.requested if key[0] == suite}
    known = find_suite(suite)
    headline = [c.name for c in known.cells if c.headline] if known else sorted(c for _, c in keys)
    others = sorted({c for _, c in keys} - set(headline), key=lambda c: suite_order((suite, c)))
    mine = [r for r in runs if any(s == suite for s, _ in r.requested)]
    with_published = with_published and (suite == PAPER_SUITE or not mine)
    if any(_has_parts(r, suite) for r in mine):
        found = [composite_table(mine, headline, with_published, suite)]
        return found + ([composite_table(mine, others, False, suite, "_other")] if others else [])
    rows = _paper_rows(suite) if with_published else []
    title = suite_title(suite)
    tables = []
    if not mine or any(c in headline for _, c in keys):
        average = not rows or "avg" in rows[0].text  # Table 2 of the paper has none
        tables.append(_headline(mine, suite, headline, rows, title, average))
    if others:
        some = [r for r in mine if any((suite, c) in r.requested for c in others)]
        tables.append(_headline(some, suite, others, [], f"{title}: other cells", False, "_other"))
    return tables


def _paper_rows(suite: str, needed: Sequence[str] = ("method",)) -> list[PublishedRow]:
    """The paper's rows of a suite; none where the suite names no file of published figures that ships."""
    known = find_suite(suite)
    if not known or not known.published or not is_published(known.published):
        return []
    return published(known.published, needed)


def _headline(
    runs: Sequence[Run],
    suite: str,
    cells: Sequence[str],
    rows: Sequence[PublishedRow],
    title: str,
    average: bool = True,
    name: str = "",
) -> Table:
    labels = {c: split_label(cell_label(suite, c)) for c in cells}
    shared = [group for group, _ in labels.values()]
    columns = [left("method", "Method")]
    if any(differing_settings(r.protocol, runs[0].protocol) for r in runs):
        columns.append(Column("protocol", "Protocol"))
    ticks = [t for t in TICKS if any(t in r.text for r in rows) or any(t in r.policy for r in runs)]
    columns += [Column(t, TICKS[t]) for t in ticks]
    for cell, (group, word) in labels.items():
        both = shared.count(group) > 1 and group
        columns.append(Column(_key(cell), word if both else cell_label(suite, cell), group if both else ""))
    body = [_measured(run, suite, cells, average, ticks) for run in runs]
    body += [_published(row, cells, ticks) for row in rows]
    if average:
        columns.append(Column("avg", "Avg"))
    averages = [r.values["avg"] for r in body if r.kind == "measured"] if average else []
    notes = [INTERVAL_NOTE, *([AVERAGE_NOTE] if any(averages) else [])] if runs else []
    notes += [TICKS_NOTE] if ticks else []
    notes += [PUBLISHED_NOTE, *_how_to_measure(suite, rows), *_other_data(runs)] if rows else []
    notes += [known.about] if runs and rows and (known := find_suite(suite)) and known.about else []
    if any(isinstance(v, Rate) and INCOMPLETE in v.mark for r in body for v in r.values.values()):
        notes.append(f"{INCOMPLETE} Fewer episodes than were requested; see the table of coverage.")
    if None in averages:
        notes.append(
            f"There is no average where a cell was not run, or has a result for less than {COVERAGE_GATE:.0%} of its "
            "episodes."
        )
    notes += _protocol_notes(runs)
    return Table(
        file_name(suite) + name, title, columns, body, tuple(notes), about=_about(runs, suite, cells)
    )


def _about(runs: Sequence[Run], suite: str, cells: Sequence[str]) -> str:
    """What the cells of a table mean, and one instruction that the runs sent."""
    said = []
    for run in runs:
        sent = run.frame.instruction[(run.frame.suite == suite) & run.frame.cell.isin(cells)]
        if example := next((one_line(s, 200) for s in sent if s), ""):
            said = [f"The robot gets one instruction per episode, such as “{example.rstrip('.')}”."]
            break
    asked = [cell_label(suite, c) for c in cells if any((suite, c) in r.requested for r in runs)]
    terms = [t for t in GLOSSARY if any(re.fullmatch(t.pattern, label) for label in asked)]
    said += [
        f"{t.name}: {t.text[0].lower() if t.text[1].islower() else t.text[0]}{t.text[1:]}" for t in terms
    ]
    return " ".join(said)


def _how_to_measure(suite: str, rows: Sequence[PublishedRow]) -> list[str]:
    """One sentence that names the policies with which the paper's rows can be measured on LIBERO."""
    known = find_suite(suite)
    if not known or known.env != ENVIRONMENTS["libero"]:
        return []
    names: dict[str, list[str]] = {}
    for path in sorted(data_dir("baselines").glob("*.yaml"), key=lambda p: p.stem):
        names.setdefault(read_yaml(path).get("published", ""), []).append(path.stem)
    methods = {row.method: names.get(row.method.partition(" (")[0]) for row in rows}  # APT (Ft VLM)
    found = [f"{' or '.join(policies)} for {method}" for method, policies in methods.items() if policies]
    return [
        f"To measure a published row: apt-bench run --suite {suite} --policy NAME. NAME is {', '.join(found)} "
        "(docs/baselines.md)."
    ]


def _other_data(runs: Sequence[Run]) -> list[str]:
    """A sentence for each run of the networks that ship: they were not trained as the paper's were."""
    return [
        f"{run.label} is the network that ships with apt-bench ({size}), trained on other data than the published "
        "rows: docs/libero-policy.md."
        for run in runs
        if (size := run.policy.get("shipped"))
    ]


def _key(cell: str) -> str:
    return own_key(cell, "method", "protocol", "avg", *TICKS)


def split_label(label: str) -> tuple[str, str]:
    """A cell's label as its group and the rest: ("Spatial", "Task (stale prompt)")."""
    group, _, word = label.partition(" ")
    return (group, word) if word else ("", label)


def _measured(run: Run, suite: str, cells: Sequence[str], average: bool, ticks: Sequence[str]) -> Row:
    summaries = {c: s for (name, c), s in cell_summaries(run).items() if name == suite}
    values: dict[str, Value] = {"method": run.label, "protocol": run.protocol_id}
    values |= {t: _tick(run.policy[t]) if t in run.policy else "" for t in ticks}
    for cell in cells:
        values[_key(cell)] = cell_rate(summaries.get(cell))
    if average:
        covered = all(c in summaries and summaries[c].covered for c in cells)
        part = run.frame[(run.frame.suite == suite) & run.frame.cell.isin(cells)]
        values["avg"] = Rate.of(macro_average(part)) if covered and cells else None
    return Row(values, "measured")


def cell_rate(summary: CellSummary | None, counts: bool = False) -> Value:
    """A cell's success rate with its interval; None without a finished episode, "n/a" where no task can be run."""
    if summary is None:
        return None
    if summary.finished == 0:
        return "n/a" if summary.unavailable and not summary.requested else None
    mark = "" if summary.covered else INCOMPLETE
    return Rate.counted(summary.successes, summary.finished, mark, counts)


def _published(row: PublishedRow, cells: Sequence[str], ticks: Sequence[str]) -> Row:
    values: dict[str, Value] = {"method": f"{row.method} {PUBLISHED}"}
    for tick in ticks:
        word = row.text.get(tick, "")
        values[tick] = _tick(word == "1" if word else None)
    known = [row.number(c) / 100 for c in cells]
    values |= {_key(c): Rate(v) for c, v in zip(cells, known, strict=True)}
    values["avg"] = Rate(row.number("avg") / 100)
    return Row(values, "published")


def _tick(value: object) -> Value:
    if value is None or value == "":
        return "?"
    return TICK if value else CROSS


def _protocol_notes(runs: Sequence[Run]) -> list[str]:
    notes, own = [], []
    for run in runs[1:]:
        settings = differing_settings(run.protocol, runs[0].protocol)
        if settings:
            notes.append(
                f"Protocol {run.protocol_id} ({run.label}) differs from {runs[0].protocol_id} ({runs[0].label}): "
                f"{in_short(settings)}. Scores under different protocols are not comparable."
            )
        own += policy_settings(run.protocol, runs[0].protocol, run.label, runs[0].label)
    return notes + ([f"{OWN_CHOICE}{'; '.join(own)}."] if own else [])


def _has_parts(run: Run, suite: str) -> bool:
    """Whether a suite's episodes have two parts, each with its own score."""
    return "score_t1" in run.frame and bool(run.frame.score_t1[run.frame.suite == suite].notna().any())


def composite_table(
    runs: Sequence[Run],
    cells: Sequence[str],
    with_published: bool = True,
    suite: str = "composite",
    name: str = "",
) -> Table:
    """Two instructions in one episode: success of the first, of the second, and of both, by mode.

    Args:
        runs: Runs of this and other suites.
        cells: The suite's cells; () = the modes that the paper has.
        with_published: Add the paper's rows.
        suite: The suite's name.
        name: Ending of the table's file name, for a table of other cells.
    """
    known = find_suite(suite)
    rows = _paper_rows(suite, ("method", "mode")) if with_published else []
    names = list(cells) or [*dict.fromkeys(r.text["mode"] for r in rows)]
    columns = [left("method", "Method")]
    columns += [Column(f"{c}.{s}", word, cell_label(suite, c)) for c in names for s, word in SCORES.items()]
    body = []
    for run in runs:
        mine = run.frame[(run.frame.suite == suite) & run.frame.cell.isin(names) & run.frame.finished]
        if len(mine):
            values: dict[str, Value] = {"method": run.label}
            for cell in names:
                part = mine[mine.cell == cell]
                values |= {f"{cell}.{s}": score_rate(part, s) for s in SCORES}
            body.append(Row(values, "measured"))
    for row in rows:
        body.append(
            Row(
                {
                    "method": f"{row.method} {PUBLISHED}",
                    **{f"{row.text['mode']}.{s}": Rate(row.number(s) / 100) for s in SCORES},
                },
                "published",
            )
        )
    notes = [INTERVAL_NOTE] if any(r.kind == "measured" for r in body) else []
    notes += [known.about] if known and body and body[0].kind == "measured" else []
    if rows:
        notes += [PUBLISHED_NOTE, f"{NONE} The text of the paper does not state this value."]
    title = suite_title(suite) + (": other cells" if name else "")
    return Table(file_name(suite) + name, title, columns, body, tuple(notes))


def score_rate(part: pd.DataFrame, score: str) -> Rate:
    """Share of episodes that completed a part of the task. Without scores, `t1_t2` is the episode's success."""
    column = f"score_{score}"
    if column in part and part[column].notna().any():
        return Rate.share(part[column].dropna() >= 1)
    return Rate.share(part.success) if score == "t1_t2" else Rate(math.nan)


REAL = {
    "pick_place": ("Pick-Place", "real_pick_place", ("so", "uo", "uouc", "uoucue")),
    "clutter_pick_place": ("Clutter Pick-Place", "real_clutter_pick_place", ("so", "uc", "uo", "uoue")),
}
"""Table 3: task -> its title, the suite of the records of real trials, and its cells."""


def real_table(runs: Sequence[Run], with_published: bool = True) -> Table:
    """The paper's Table 3: real robot, successes / trials."""
    columns = [left("method", "Method")]
    columns += [Column(f"{t}.{c}", c.upper(), title) for t, (title, _, cells) in REAL.items() for c in cells]
    columns += [Column(f"{t}.total", "all", title) for t, (title, _, _) in REAL.items()]
    order = [c for t in REAL for c in columns if c.key.startswith(t + ".")]
    body = []
    for run in runs:
        found = cell_summaries(run)
        values: dict[str, Value] = {"method": run.label}
        for task, (_, suite, cells) in REAL.items():
            mine = {c: found[suite, c] for c in cells if (suite, c) in found}
            values |= {f"{task}.{c}": cell_rate(s, counts=True) for c, s in mine.items()}
            values[f"{task}.total"] = _total([(s.successes, s.finished) for s in mine.values()])
        if any((suite, c) in found for _, suite, cells in REAL.values() for c in cells):
            body.append(Row(values, "measured"))
    needed = ("method", "task", "split", "successes", "trials")
    rows = published("real_world.csv", needed) if with_published else []
    for method in dict.fromkeys(r.method for r in rows):
        values = {"method": f"{method} {PUBLISHED}"}
        for task in REAL:
            pairs = {r.text["split"]: _pair(r) for r in rows if r.method == method and r.text["task"] == task}
            values |= {f"{task}.{c}": _total([pair]) for c, pair in pairs.items()}
            values[f"{task}.total"] = _total(list(pairs.values()))
        body.append(Row(values, "published"))
    notes = ["Successes / trials, with Wilson's 95% intervals in %."]
    if rows:
        notes.append(
            f"{PUBLISHED} Successes and trials as published in {SOURCE}; intervals computed from them here."
        )
    return Table("real_world", "Real robot", [columns[0], *order], body, tuple(notes))


def _pair(row: PublishedRow) -> tuple[int, int]:
    return int(row.text["successes"]), int(row.text["trials"])


def _total(pairs: Sequence[tuple[int, int]]) -> Rate:
    return Rate.counted(sum(p[0] for p in pairs), sum(p[1] for p in pairs), counts=True)


def paper_tables() -> list[Table]:
    """All tables of `results/published`: the paper's Tables 1 to 3 and its compositional results."""
    return [
        *suite_tables([], "libero_pro"),
        *suite_tables([], "rigid_pick_place"),
        real_table([]),
        composite_table([], ()),
    ]


def reported_average(row: PublishedRow, cells: Sequence[str]) -> float:
    """Mean of a published row's cells in percent, nan where one is unknown. It must agree with the row's `avg`."""
    values = [row.number(c) for c in cells]
    return sum(values) / len(values) if values else math.nan
