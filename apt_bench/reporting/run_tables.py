"""Tables of whole runs: where the time goes, the protocol cards, and what ran them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd

from apt_bench.analysis.run import Run
from apt_bench.reporting.table import RUN, Row, Table, Value, left, right

PARTS = ["seconds_reset", "seconds_physics", "seconds_render", "seconds_policy", "seconds_wait"]
"""Parts of an episode in the order in which the table shows them; others follow."""


def throughput_table(runs: Sequence[Run]) -> Table:
    """Where the time goes, over all episodes, including those under language probes."""
    frames = [r.frame if r.probed.empty else pd.concat([r.frame, r.probed]) for r in runs]
    recorded = {c for frame in frames for c in frame if c.startswith("seconds_")}
    parts = sorted(recorded, key=lambda p: (PARTS.index(p) if p in PARTS else len(PARTS), p))
    rows = []
    for run, frame in zip(runs, frames, strict=True):
        finished = frame[frame.finished]
        wall = run.info.get("wall_seconds")
        steps = int(finished.steps.sum())
        values: dict[str, Value] = {"run": run.label, "episodes": len(finished), "steps": steps}
        mean = {p: float(finished[p].mean()) for p in parts if p in finished and finished[p].notna().any()}
        values |= {p: f"{m:.2f}" for p, m in mean.items()}
        busy = sum(float(finished[p].sum()) for p in mean)
        values["rate"] = f"{steps / busy:.{0 if steps >= 10 * busy else 1}f}" if busy else ""
        if isinstance(wall, int | float) and 0 < wall < 1e12:
            values["wall"] = f"{wall / 60:.1f}"
            values["per_minute"] = f"{60 * len(frame) / wall:.1f}"
        rows.append(Row(values))
    columns = [
        RUN, right("episodes", "Episodes"), right("steps", "Control steps"),
        *(right(p, p.removeprefix("seconds_"), "Seconds per episode") for p in parts),
        right("rate", "Steps per second of work"), right("wall", "Wall clock, min"),
        right("per_minute", "Episodes per min"),
    ]  # fmt: skip
    columns = [c for c in columns if c.key in ("run", *parts) or any(r.values.get(c.key) for r in rows)]
    notes = (
        "Seconds per episode, by part: reset of the scene, physics, rendering of images, the policy, and "
        "waiting for a batch or for the policy's process. Steps per second of work: control steps per second of these "
        "parts together. Wall clock: of all commands of the run.",
    )
    return Table("throughput", "Time", columns, rows, notes)


def card_table(runs: Sequence[Run], which: Literal["protocol", "run"]) -> Table:
    """The runs' protocol cards (`protocol`) or run.json (`run`), side by side. Entries that differ come first."""
    cards = [flat(r.protocol if which == "protocol" else _circumstances(r)) for r in runs]
    keys = list(dict.fromkeys(k for card in cards for k in card))
    columns = [left("key", ""), *(left(str(i), r.label) for i, r in enumerate(runs))]
    rows = [Row({"key": k, **{str(i): c.get(k, "") for i, c in enumerate(cards)}}) for k in keys]
    if len(runs) > 1:
        rows.sort(key=lambda r: len({r.values[str(i)] for i in range(len(runs))}) == 1)
    title = "Protocol" if which == "protocol" else "Software and hardware"
    return Table("card_" + which, title, columns, rows, paper=False)


def _circumstances(run: Run) -> dict[str, object]:
    return {k: v for k, v in run.info.items() if k not in ("requested", "requested_probes", "unavailable")}


def flat(card: Mapping[str, object], prefix: str = "", depth: int = 8) -> dict[str, str]:
    """Nested settings as `a.b: text`. Settings below the given depth are written as one JSON text."""
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
