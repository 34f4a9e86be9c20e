"""The table of what two-stage training adds: pairs of policies that differ in nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

from apt_bench.analysis.contrasts import join, paired_contrast
from apt_bench.analysis.run import Run
from apt_bench.analysis.suite_labels import cell_label
from apt_bench.core.text import file_name
from apt_bench.reporting.headline_tables import PUBLISHED_NOTE, TICKS
from apt_bench.reporting.published import published
from apt_bench.reporting.table import PUBLISHED, Column, Rate, Row, Table, Value, left, own_key

SAME = ("architecture", "knowledge_insulation", "finetune_vlm")
"""Entries of a policy in run.json that are equal in both runs of a pair, as are its arguments; `two_stage` differs."""


def gain_table(
    runs: Sequence[Run], suite: str, cells: Sequence[str], with_published: bool = True
) -> Table | None:
    """2-Stage minus 1-Stage per cell, in points.

    Measured pairs are matched by episode and have the interval of `compare`. Published pairs are differences of the
    cells of the paper's Table 2.

    Args:
        runs: Runs, of which any two may be a pair.
        suite: The suite.
        cells: Its cells, in the order of the columns.
        with_published: Add the paper's pairs (suite `rigid_pick_place`).

    Returns:
        The table, or None where there is no pair.
    """
    pairs = [(a, b, values) for a in runs for b in runs if (values := _measured(a, b, suite, cells))]
    labels = [_label([(k, a.policy.get(k)) for k in SAME]) or a.label for a, _, _ in pairs]
    rows = [
        Row(
            {"method": f"{label} ({a.label} − {b.label})" if labels.count(label) > 1 else label, **values},
            "measured",
        )
        for label, (a, b, values) in zip(labels, pairs, strict=True)
    ]
    if with_published and suite == "rigid_pick_place":
        rows += _published(cells)
    if not rows:
        return None
    columns = [
        left("method", "Policy"),
        *(Column(_key(c), cell_label(suite, c)) for c in cells),
    ]
    notes = ["Percentage points. Measured pairs have the 95% interval of apt-bench compare."]
    if any(r.kind == "published" for r in rows):
        notes.append(PUBLISHED_NOTE)
    return Table(f"gain_{file_name(suite)}", "2-Stage minus 1-Stage", columns, rows, tuple(notes))


def _key(cell: str) -> str:
    return own_key(cell, "method")


def _label(settings: Sequence[tuple[str, object]]) -> str:
    architecture = next((str(v) for k, v in settings if k == "architecture" and v), "")
    on = [TICKS[k] for k, v in settings if k in TICKS and v]
    return ", ".join([architecture, *on]).strip(", ")


def _measured(two: Run, one: Run, suite: str, cells: Sequence[str]) -> dict[str, Value]:
    """Gain by cell; empty where the two runs are not a pair."""
    if two.policy.get("two_stage") is not True or one.policy.get("two_stage") is not False:
        return {}
    if any(two.policy.get(k) != one.policy.get(k) for k in SAME) or two.protocol_id != one.protocol_id:
        return {}
    if two.policy_args != one.policy_args:
        return {}
    values: dict[str, Value] = {}
    for cell in cells:
        pairs = join(*(r.frame[(r.frame.suite == suite) & (r.frame.cell == cell)] for r in (two, one)))
        if len(pairs):
            values[_key(cell)] = Rate.of(paired_contrast(cell, pairs).difference, signed=True)
    return values


def _published(cells: Sequence[str]) -> list[Row]:
    rows = published("rigid_pick_place.csv", ("method", "two_stage", *SAME[1:]))
    found = []
    for two in rows:
        for one in rows:
            same = all(two.text[k] == one.text[k] for k in ("method", "knowledge_insulation", "finetune_vlm"))
            if same and (two.text["two_stage"], one.text["two_stage"]) == ("1", "0"):
                on = [(k, two.text[k] == "1") for k in SAME[1:]]
                values: dict[str, Value] = {
                    "method": f"{_label([('architecture', two.method), *on])} {PUBLISHED}"
                }
                for cell in cells:
                    gain = (two.number(cell) - one.number(cell)) / 100
                    values[_key(cell)] = None if math.isnan(gain) else Rate(gain, signed=True)
                found.append(Row(values, "published"))
    return found
