"""Leaderboards: one table per suite and protocol, one row per run, with what a reader needs to judge the row."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apt_bench.analysis.cell_summary import cell_summaries
from apt_bench.analysis.run import Run, suite_names
from apt_bench.analysis.suite_labels import suite_title
from apt_bench.core.text import one_line
from apt_bench.reporting.coverage import progress
from apt_bench.reporting.headline_tables import OWN_CHOICE, REAL, real_table, suite_tables
from apt_bench.reporting.table import Rate, Row, Table, Value, left
from apt_bench.runs.protocol import own_settings, settings_hash

NOT_STATED = "not stated"
NO_CHECKPOINT = "no checkpoint"

NOTES = (
    "Sorted by the average, or by the first cell where there is no average; unfinished runs come last. Intervals "
    "that overlap widely do not show which run is better; the comparisons do.",
    "Selection: which checkpoint was run, and on which episodes it was chosen. A checkpoint that was chosen on the "
    "episodes of this table has a score that is too high. State it with apt-bench run --selection-rule.",
    "Policy's own settings: they belong to the policy and may differ in one table. The hash of the run's protocol "
    "includes them, the hash in the heading does not.",
)


@dataclass(frozen=True)
class Board:
    """The runs that share a table.

    Attributes:
        suite: The suite's name.
        settings: Hash of the protocol without the policies' own settings (`runs.protocol.settings_hash`).
        runs: The runs.
    """

    suite: str
    settings: str
    runs: tuple[Run, ...]

    @property
    def title(self) -> str:
        """The heading of the leaderboard."""
        return f"{one_line(suite_title(self.suite), 120)}, protocol {self.settings}"


def boards(runs: Sequence[Run]) -> list[Board]:
    """One leaderboard for each suite and protocol. Runs under different protocols never share one."""
    found: dict[tuple[str, str], list[Run]] = {}
    for suite in suite_names(runs):
        for run in runs:
            if any(name == suite for name, _ in run.requested):
                found.setdefault((suite, settings_hash(run.protocol)), []).append(run)
    return [Board(*key, tuple(mine)) for key, mine in found.items()]


def board_tables(board: Board, pages: Mapping[str, str]) -> list[Table]:
    """The tables of a leaderboard: the headline cells, and other cells where runs have any.

    Args:
        board: The leaderboard.
        pages: Label of each run -> address of its page.
    """
    if any(board.suite == suite for _, suite, _ in REAL.values()):
        tables = [real_table(board.runs, with_published=False)]
    else:
        tables = suite_tables(board.runs, board.suite, with_published=False)
    return [_with_facts(board, table, pages) for table in tables]


def _with_facts(board: Board, table: Table, pages: Mapping[str, str]) -> Table:
    facts = {run.label: _facts(run) for run in board.runs}
    waiting = {run.label: _waiting(run) for run in board.runs}
    rows = [
        Row({**row.values, **facts[label]}, row.kind, pages[label])
        for row in table.rows
        for label in [str(row.values["method"])]
    ]
    rates = [c.key for c in table.columns if any(isinstance(r.values.get(c.key), Rate) for r in rows)]
    by = (["avg"] if "avg" in rates else []) + rates
    rows.sort(
        key=lambda row: (waiting[str(row.values["method"])] > 0, [_place(row.values.get(k)) for k in by])
    )
    notes = [n for n in table.notes if not n.startswith(OWN_CHOICE)]  # they have a column here
    shown = [c for c in table.columns if any(r.values.get(c.key) is not None for r in rows)]
    if len(shown) < len(table.columns):
        notes.append("Cells that no run of this table has are not shown; without them there is no average.")
    columns = [
        *shown, left("site:episodes", "Episodes"), left("site:selection", "Selection"),
        left("site:own", "Policy's own settings"), left("site:date", "Date"), left("site:hash", "Run's protocol"),
    ]  # fmt: skip
    return dataclasses.replace(
        table, name=f"{table.name}_{board.settings}", columns=columns, rows=rows, notes=(*notes, *NOTES),
        paper=False,
    )  # fmt: skip


def _place(value: Value) -> float:
    """Sort key of a rate: the highest comes first, unknown ones last."""
    return -value.value if isinstance(value, Rate) and value.known else 1.0


def _waiting(run: Run) -> int:
    """Requested episodes that have not run, unless a stopping rule ended the run."""
    requested, finished, errors = progress(cell_summaries(run).values())
    return 0 if run.sequential else requested - finished - errors


def _facts(run: Run) -> dict[str, str]:
    requested, finished, errors = progress(cell_summaries(run).values())
    parts = [
        f"{finished} of {requested}",
        *([f"{errors} error{'s' if errors > 1 else ''}"] if errors else []),
        *(["not finished"] if _waiting(run) > 0 else []),
        *(["stopping rule"] if run.sequential else []),
    ]
    privileged = (
        ", reads from the simulator where everything is" if run.policy.get("privileged") is True else ""
    )
    return {
        "site:episodes": ", ".join(parts),
        "site:selection": selection(run),
        "site:own": own_settings(run.protocol) + privileged,
        "site:date": str(run.info.get("ended") or run.info.get("started") or "")[:10],
        "site:hash": run.protocol_id,
    }


def selection(run: Run) -> str:
    """Which checkpoint was run, and how it was chosen, in one line.

    The user states it with `apt-bench run --selection-rule`. Otherwise the policy may declare it, in an entry
    `selection_rule` of `Provenance.about`.
    """
    stated = run.info.get("selection_rule") or run.policy.get("selection_rule")
    if stated:
        return one_line(stated, 300)
    if run.policy.get("shipped"):
        return "ships with apt-bench"
    return NOT_STATED if run.policy.get("weights") or "weights" not in run.policy else NO_CHECKPOINT
