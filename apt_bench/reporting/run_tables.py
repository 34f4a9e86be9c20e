"""Tables of whole runs: where the time goes, the protocol cards, and what ran them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import pandas as pd

from apt_bench.analysis.run import Run
from apt_bench.analysis.suite_labels import cell_label
from apt_bench.core.wording import in_words
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


ABOUT_CARDS = (
    "What was run, and where. Scores are comparable if all settings of the protocol are equal, except the policy's "
    "own: its cameras and the number of actions per decision. Settings that differ come first."
)

WORDS = {
    "hash": "Hash of this protocol",
    "version": "Version of the suite",
    "env": "Environment (Python class)",
    "settle_steps": "Control steps before the policy acts",
    "control_hz": "Control steps per second",
    "instruction": "Source of the instructions",
    "execute": "Actions per decision",
    "cameras": "Cameras of the policy",
    "custom_instructions": "Hash of the user's own sentences",
    "apt_bench": "apt-bench",
    "git": "Version of the code (git)",
    "gl": "Renderer",
    "wall_seconds": "Wall clock, s",
}
"""Settings of protocol.json and run.json that the page does not call by their own words."""

CELL_WORDS = {"args": "", "max_steps": "control steps at most", "instruction": "instructions from"}
"""The same for settings of a cell."""


def card_table(runs: Sequence[Run], which: Literal["protocol", "run"]) -> Table:
    """The runs' protocol cards (`protocol`) or run.json (`run`), side by side. Entries that differ come first."""
    return _side_by_side(
        runs, [flat(r.protocol if which == "protocol" else _circumstances(r)) for r in runs], which
    )


def protocol_in_words(runs: Sequence[Run]) -> Table:
    """The protocol cards for people: words for names, and one line for each requested cell."""
    asked = {cell for run in runs for _, cell in run.requested}
    cards = []
    for run in runs:
        card = dict(run.protocol)
        cells = card.pop("cells") if isinstance(card.get("cells"), Mapping) else {}
        shown = {_name(k): v for k, v in flat(card, text=_value).items()}
        for cell in (c for c in cells if c in asked):
            label = cell_label(str(run.protocol.get("suite", "")), cell)
            shown[f"Cell {label}"] = ", ".join(
                " ".join(filter(None, [*(CELL_WORDS.get(p, in_words(p)) for p in key.split(".")), value]))
                for key, value in flat({"": cells[cell]}, text=_value).items()
            )
        cards.append(shown)
    return _side_by_side(runs, cards, "protocol")


def circumstances_in_words(runs: Sequence[Run]) -> Table:
    """run.json for people: words for names."""
    return _side_by_side(
        runs, [{_name(k): v for k, v in flat(_circumstances(r), text=_value).items()} for r in runs], "run"
    )


def _name(key: str) -> str:
    """The name of a setting in words: `packages.mujoco` -> `Packages: mujoco`."""
    first, *rest = key.split(".")
    return ": ".join([WORDS.get(first, in_words(first).capitalize()), *map(in_words, rest)])


def _side_by_side(runs: Sequence[Run], cards: Sequence[Mapping[str, str]], which: str) -> Table:
    keys = list(dict.fromkeys(k for card in cards for k in card))
    columns = [left("key", ""), *(left(str(i), r.label) for i, r in enumerate(runs))]
    rows = [Row({"key": k, **{str(i): c.get(k, "") for i, c in enumerate(cards)}}) for k in keys]
    if len(runs) > 1:
        rows.sort(key=lambda r: len({r.values[str(i)] for i in range(len(runs))}) == 1)
    title = "Protocol" if which == "protocol" else "Software and hardware"
    return Table("card_" + which, title, columns, rows, paper=False)


def _circumstances(run: Run) -> dict[str, object]:
    return {k: v for k, v in run.info.items() if k not in ("requested", "requested_probes", "unavailable")}


def _json(value: object) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "nested too deeply"


def _value(value: object) -> str:
    """A value for people: `yes` for true, `none` for null and an empty list."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else _json(value)


def flat(
    card: Mapping[str, object], prefix: str = "", depth: int = 8, text: Callable[[object], str] = _json
) -> dict[str, str]:
    """Nested settings as `a.b: text`. Settings below the given depth are written as one text."""
    found: dict[str, str] = {}
    for key, value in card.items():
        if isinstance(value, Mapping) and depth:
            found |= flat(value, f"{prefix}{key}.", depth - 1, text)
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else text(value)
    return found
