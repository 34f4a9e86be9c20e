"""What two-stage training brings: pairs of policies that differ in nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

from apt_bench import stats
from apt_bench.reporting.data import KEY, Run, cell_label
from apt_bench.reporting.published import published
from apt_bench.reporting.table import PUBLISHED, Column, Rate, Row, Table, Value, file_name
from apt_bench.reporting.tables import PUBLISHED_NOTE, TICKS

SAME = ("architecture", "knowledge_insulation", "finetune_vlm")
"""What `run.json` says of a policy that both runs of a pair must share; `two_stage` is what tells them apart."""


def gain_table(
    runs: Sequence[Run], suite: str, cells: Sequence[str], with_published: bool = True
) -> Table | None:
    """2-Stage minus 1-Stage per cell, in points; None where there is no such pair. Measured pairs are matched by
    episode (Newcombe's paired interval). The published ones are differences of Table 2's cells."""
    rows = [row for a in runs for b in runs if (row := _measured(a, b, suite, cells))]
    if with_published and suite == "rigid_pick_place":
        rows += _published(cells)
    if not rows:
        return None
    columns = [Column("method", "Policy", align="left"), *(Column(c, cell_label(suite, c)) for c in cells)]
    notes = ["Percentage points, measured pairs with Newcombe's paired 95% interval."]
    if any(r.kind == "published" for r in rows):
        notes.append(PUBLISHED_NOTE)
    return Table(f"gain_{file_name(suite)}", "2-Stage minus 1-Stage", columns, rows, tuple(notes))


def _label(settings: Sequence[tuple[str, object]]) -> str:
    architecture = next((str(v) for k, v in settings if k == "architecture" and v), "")
    on = [TICKS[k] for k, v in settings if k in TICKS and v]
    return ", ".join([architecture, *on]).strip(", ")


def _measured(two: Run, one: Run, suite: str, cells: Sequence[str]) -> Row | None:
    if two.policy.get("two_stage") is not True or one.policy.get("two_stage") is not False:
        return None
    if any(two.policy.get(k) != one.policy.get(k) for k in SAME) or two.protocol_id != one.protocol_id:
        return None
    values: dict[str, Value] = {"method": _label([(k, two.policy.get(k)) for k in SAME]) or two.label}
    for cell in cells:
        a, b = (r.frame[(r.frame.suite == suite) & (r.frame.cell == cell) & r.frame.done] for r in (two, one))
        pairs = a[[*KEY, "success"]].merge(b[[*KEY, "success"]], on=KEY)
        if len(pairs):
            up = int((pairs.success_x & ~pairs.success_y).sum())
            down = int((~pairs.success_x & pairs.success_y).sum())
            both = int((pairs.success_x & pairs.success_y).sum())
            interval = stats.newcombe_paired(both, up, down, len(pairs) - both - up - down)
            values[cell] = Rate((up - down) / len(pairs), *interval, signed=True)
    return Row(values, "measured") if len(values) > 1 else None


def _published(cells: Sequence[str]) -> list[Row]:
    rows = published("rigid_pick_place.csv")
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
                    values[cell] = None if math.isnan(gain) else Rate(gain, signed=True)
                found.append(Row(values, "published"))
    return found
