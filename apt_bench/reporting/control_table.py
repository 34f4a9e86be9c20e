"""The table of controls: each cell against its unperturbed cell, and against the old instruction."""

from __future__ import annotations

from collections.abc import Sequence

from apt_bench.analysis.cell_summary import cell_summaries
from apt_bench.analysis.contrasts import join, paired_contrast, unpaired_contrast
from apt_bench.analysis.run import Run
from apt_bench.analysis.suite_labels import cell_label, find_suite, suite_title
from apt_bench.reporting.table import CELL, RUN, Rate, Row, Table, left, pvalue, right
from apt_bench.suites import STALE

CONTROLS = "Cells and their controls"
ABOUT_CONTROLS = (
    "A control is the same policy under one other condition. Most controls are the cell without its change, for "
    "example with seen objects instead of unseen ones: the difference shows what the change costs. The stale control "
    "is the same scene with the old instruction: it shows whether the policy reads its instruction."
)

Cell = tuple[str, str]
"""Suite and cell."""


def control_table(runs: Sequence[Run]) -> Table | None:
    """Each cell against its controls under the same policy.

    A cell has two controls: its unperturbed cell, and the same scene with the old instruction (`CELL@stale`). The
    run's own control counts; where it has none, that of each other run of the same policy (`Run.identity`). Episodes
    are paired by task and initial state where both sides have them.

    Returns:
        The table, or None where no cell has a control.
    """
    rows = []
    for run in runs:
        others = [r for r in runs if r is not run and run.identity and r.identity == run.identity]
        for cell in cell_summaries(run):
            for control in _controls(cell):
                own = _row(run, cell, run, control)
                found = [own] if own else [_row(run, cell, r, control) for r in others]
                rows += [row for row in found if row]
    if not rows:
        return None
    columns = [
        RUN, CELL, left("control", "Control"), right("cell_rate", "Success in cell"),
        right("control_rate", "Success in control"), right("drop", "Difference"),
        right("pairs", "Pairs"), right("p", "p"),
    ]  # fmt: skip
    notes = (
        "Cell and control are of the same policy: the same class, arguments, weights and execute horizon, whatever "
        "its name. Difference: cell minus control in points, with its 95% interval; paired by task and initial state, "
        "or unpaired where there are no pairs. Interval and p are those of apt-bench compare. The stale control sends "
        "the old instruction in the same scene: equal scores there mean that the policy does not read its instruction.",
    )
    return Table("controls", CONTROLS, columns, rows, notes)


def _controls(cell: Cell) -> list[Cell]:
    suite, name = cell
    known = find_suite(suite)
    control = next((c.control for c in known.cells if c.name == name), None) if known else None
    found = [(suite, name + STALE)]
    if control:
        other, _, unperturbed = control.partition(":")
        found.append((other, unperturbed))
    return found


def _row(run: Run, cell: Cell, other: Run, control: Cell) -> Row | None:
    """A cell of `run` against a control of `other`, which may be the same run; None where one of them is empty."""
    a, b = (
        frame[(frame.suite == suite) & (frame.cell == name) & frame.finished]
        for frame, (suite, name) in ((run.frame, cell), (other.frame, control))
    )
    if not len(a) or not len(b):
        return None
    pairs = join(a, b, ["task", "init", "seed", "prompt"])
    if len(pairs):
        found, rates = paired_contrast("", pairs), (Rate.share(pairs.a), Rate.share(pairs.b))
    else:
        found, rates = unpaired_contrast("", [(a, b)])[0], (Rate.share(a.success), Rate.share(b.success))
    whose = "" if other is run else f" ({other.label})"
    return Row(
        {
            "run": run.label, "cell": cell_label(*cell), "control": _control_label(cell, control) + whose,
            "cell_rate": rates[0], "control_rate": rates[1], "drop": Rate.of(found.difference, signed=True),
            "pairs": len(pairs) or "unpaired", "p": pvalue(found.p),
        }
    )  # fmt: skip


def _control_label(cell: Cell, control: Cell) -> str:
    """The control's label, with its suite where that is another one: cells of two suites may share a name."""
    suite = f"{suite_title(control[0])} " if control[0] != cell[0] else ""
    return suite + cell_label(*control)
