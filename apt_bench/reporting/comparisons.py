"""The output of compare and check: tables, a figure, JUnit XML and a GitHub step summary."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from matplotlib.figure import Figure

from apt_bench.analysis.check import Check, Gate
from apt_bench.analysis.compare import Comparison
from apt_bench.analysis.contrasts import Contrast
from apt_bench.reporting.chart_style import BLUE, INK, MUTED, WIDTH, style
from apt_bench.reporting.table import NUMBERS, Column, Rate, Row, Table, left, pvalue, right
from apt_bench.reporting.table_files import markdown

VERDICT = (
    "Verdict at 0.05, with Holm's adjustment of the cells' p. A difference must be significant twice: over the "
    "episodes (other initial states of these tasks; score interval, exact test) and over the tasks (other tasks like "
    "these; sign-flip test of whole tasks). p is the larger of both p-values and the interval covers both intervals: "
    "it excludes 0 exactly where p is at most 0.05. With fewer than 6 tasks, all must have the same sign, and the "
    "verdict is about these tasks only."
)


def comparison_tables(found: Comparison, a: str, b: str) -> list[Table]:
    """The tables of a comparison.

    Args:
        found: The comparison.
        a: Name of run A.
        b: Name of run B.

    Returns:
        `compare` (overall and per cell) and, for matched runs, `compare_tasks` (per task).
    """
    rows = [_row(c) for c in (found.overall, *found.cells)]
    paired = found.overall.paired
    how = (
        "Matched episode by episode; mean over cells of the mean over tasks."
        if paired
        else "The runs have no common episode, so they are not matched; overall is the mean over cells."
    )
    notes = [
        f"A: {a}. B: {b}. Success in %, difference A minus B in points with its 95% interval. {how}",
        VERDICT,
    ]
    notes += [f"The policies differ in their own settings: {s}." for s in found.policy_settings]
    if found.unmatched_a or found.unmatched_b:
        notes.append(
            f"Left out, because the other run has no such episode: {found.unmatched_a} episodes of A, "
            f"{found.unmatched_b} of B."
        )
    if found.protocol_settings:
        notes.append(
            "The protocols differ, which alone may change the scores: "
            + "; ".join(found.protocol_settings)
            + "."
        )
    notes += found.cautions
    tables = [Table("compare", f"{a} against {b}", _columns("cell", "Cell", paired), rows, tuple(notes))]
    if found.tasks:
        order = sorted(found.tasks, key=lambda c: (c.p, -abs(c.difference.value)))
        notes = [
            "p with Benjamini and Hochberg's adjustment: this table is for exploring, not a claim about a single task."
        ]
        columns = _columns("cell", "Task", paired)
        if any(c.number is not None for c in order):
            columns.insert(0, right("number", "#"))
            notes.append(NUMBERS)
        tables.append(
            Table("compare_tasks", f"{a} against {b}, per task", columns, [_row(c) for c in order], notes)
        )
    return tables


def _columns(key: str, label: str, paired: bool) -> list[Column]:
    counts = [right("pairs", "Pairs")] if paired else [right("n_a", "Trials A"), right("n_b", "Trials B")]
    split = [right("only", "Only A / only B")] if paired else []
    return [
        left(key, label, identifiers=label == "Task"), *counts, right("a", "A"), right("b", "B"),
        right("difference", "Difference"), *split, right("tasks", "Tasks"), right("p", "p"),
        right("adjusted", "p adj."), left("verdict", "Verdict"),
    ]  # fmt: skip


def _row(c: Contrast) -> Row:
    return Row(
        {
            "cell": c.name, "pairs": c.n_a, "n_a": c.n_a, "n_b": c.n_b, "a": Rate(c.rate_a), "b": Rate(c.rate_b),
            "difference": Rate.of(c.difference, signed=True), "only": f"{c.only_a} / {c.only_b}",
            "tasks": c.tasks or "",
            "number": "" if c.number is None else c.number, "p": pvalue(c.p),
            "adjusted": pvalue(c.adjusted), "verdict": c.words,
        }
    )  # fmt: skip


def difference_chart(table: Table) -> Figure | None:
    """A minus B with its interval, one row each; a filled mark means a decided row. None without any difference."""
    rows = [r for r in table.rows if isinstance(r.values.get("difference"), Rate)]
    if not rows:
        return None
    with style():
        figure = Figure(figsize=(WIDTH * 0.7, 0.65 + 0.2 * len(rows)))
        axis = figure.subplots()
        for y, row in enumerate(rows):
            value = row.values["difference"]
            assert isinstance(value, Rate)
            decided = str(row.values["verdict"]).startswith(("A better", "B better"))
            axis.plot([100 * value.low, 100 * value.high], [y, y], color=BLUE if decided else MUTED, lw=1.2)
            axis.plot(100 * value.value, y, "o", ms=5, color=BLUE if decided else MUTED, mew=1.2,
                      mfc=BLUE if decided else "white")  # fmt: skip
        axis.axvline(0, color=INK, lw=0.7)
        axis.set_yticks(range(len(rows)), [str(r.values["cell"]) for r in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("A minus B, percentage points, 95% interval (filled: decided)")
    return figure


def check_table(found: Check, run: str, baseline: str) -> Table:
    """The table of a check: one row overall and per cell.

    Args:
        found: The check.
        run: Name of the run.
        baseline: Name of the baseline.
    """
    gates: Sequence[Gate] = (*([found.overall] if found.overall else []), *found.cells)
    rows = [
        Row(
            {
                "contrast": g.name, "pairs": g.pairs, "baseline": Rate(g.baseline), "run": Rate(g.rate),
                "difference": Rate(g.difference, signed=True), "low": Rate(g.low, signed=True),
                "only": f"{g.only_baseline} / {g.only_run}", "p": pvalue(g.p), "power": Rate(g.power),
                "verdict": g.verdict,
            }
        )
        for g in gates
    ]  # fmt: skip
    columns = [
        left("contrast", ""), right("pairs", "Pairs"), right("baseline", "Baseline"), right("run", "Run"),
        right("difference", "Difference"), right("low", "Lower limit"), right("only", "Lost / won"),
        right("p", "p worse"), right("power", f"Power at −{100 * found.drop:g}"), left("verdict", "Verdict"),
    ]  # fmt: skip
    notes = (
        f"Run: {run}. Baseline: {baseline}. Margin: {100 * found.margin:g} points. Coverage: {found.coverage:.0%}.",
        "Lower limit: one-sided 95% limit of the paired difference (Tango's score interval). p worse: one-sided exact "
        f"McNemar test with Holm's adjustment. Power: chance to detect a drop of {100 * found.drop:g} points, in %.",
        "About these tasks and initial states: the question is whether the same episodes still succeed.",
        *(f"The policies differ in their own settings: {s}." for s in found.policy_settings),
        *found.cautions,
    )
    return Table("check", "Check", columns, rows, notes)


def summary(found: Check, run: str, baseline: str) -> str:
    """A check as Markdown for a GitHub step summary."""
    sign = {"pass": "✅", "regressed": "❌", "inconclusive": "⚠️"}[found.verdict]
    lines = [f"## {sign} apt-bench check: {found.verdict}", "", *(f"- {r}" for r in found.reasons), ""]
    return "\n".join(lines) + "\n" + markdown(check_table(found, run, baseline))


def junit(found: Check, run: str, baseline: str) -> str:
    """A check as JUnit XML: one test case for the verdict and one per row of the table.

    Regressed is a failure. Inconclusive is an error of the verdict's case, and skips the case of a row.
    """
    gates = (*([found.overall] if found.overall else []), *found.cells)
    suite = ElementTree.Element("testsuite", name="apt-bench check", tests=str(len(gates) + 1))
    whole = ElementTree.SubElement(suite, "testcase", classname=baseline, name=f"{run}: verdict")
    text = "\n".join(found.reasons)
    if found.verdict == "regressed":
        ElementTree.SubElement(whole, "failure", message="regressed").text = text
    elif found.verdict == "inconclusive":
        ElementTree.SubElement(whole, "error", message="inconclusive").text = text
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname=baseline, name=f"{run}: {gate.name}")
        words = f"{100 * gate.difference:+.1f} points, lower limit {100 * gate.low:+.1f}, {gate.pairs} pairs"
        if gate.verdict == "regressed":
            ElementTree.SubElement(case, "failure", message=f"regressed: {words}")
        elif gate.verdict == "inconclusive":
            ElementTree.SubElement(case, "skipped", message=f"inconclusive: {words}")
    verdicts = [g.verdict for g in gates]
    suite.set("failures", str(verdicts.count("regressed") + (found.verdict == "regressed")))
    suite.set("errors", str(int(found.verdict == "inconclusive")))
    suite.set("skipped", str(verdicts.count("inconclusive")))
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    text = "".join(
        c if c in "\n\t" or c.isprintable() else "?" for c in text
    )  # no control characters in XML 1.0
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'
