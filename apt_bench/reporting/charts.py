"""The figures of a report. Each function returns a figure, or None where there is no data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from apt_bench.analysis.cell_summary import cell_frames
from apt_bench.analysis.run import Run
from apt_bench.analysis.suite_labels import cell_label, task_numbers
from apt_bench.core.text import one_line
from apt_bench.reporting.chart_style import (
    BLACK,
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    SERIES,
    SKY,
    WIDTH,
    YELLOW,
    style,
)
from apt_bench.reporting.episode_tables import LANGUAGE, outcome_classes
from apt_bench.reporting.headline_tables import TICK, TICKS
from apt_bench.reporting.table import Column, Rate, Row, Table, percent


def _colours(rows: Sequence[Row]) -> list[str]:
    """Measured rows in series colours, published ones grey."""
    measured = iter(SERIES * (len(rows) // len(SERIES) + 1))
    return [PAPER if r.kind == "published" else next(measured) for r in rows]


def success_chart(table: Table) -> Figure | None:
    """One panel per cell with one bar per method.

    Measured bars are coloured and have their 95% intervals; published ones are grey and hatched. The panels of a header
    group of the table are next to each other.
    """
    columns = [c for c in table.columns if any(isinstance(r.values.get(c.key), Rate) for r in table.rows)]
    if not columns or not table.rows:
        return None
    at = _panels(columns)
    stacked = len({at[c.key][0] for c in columns if c.group == columns[0].group}) > 1  # groups are columns
    lines, width = max(p[0] for p in at.values()) + 1, max(p[1] for p in at.values()) + 1
    names = [_method(r) for r in table.rows]
    colours = _colours(table.rows)
    with style():
        figure = Figure(figsize=(WIDTH, 0.3 + lines * (0.42 + 0.16 * len(names))))
        axes = figure.subplots(lines, width, sharey=True, squeeze=False)
        for axis in axes.flat:
            axis.set_visible(False)
        for column in columns:
            axis = axes[at[column.key]]
            axis.set_visible(True)
            first = not columns[0].group or stacked or at[column.key][1] == 0  # names its group
            axis.set_title(_short(f"{column.group if first else ''} {column.label}".strip()))
            _bars(axis, [r.values.get(column.key) for r in table.rows], table.rows, colours)
            axis.tick_params(labelleft=at[column.key][1] == 0)
        axes[0, 0].set_yticks(range(len(names)), names)
        axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
        figure.supxlabel("Success, %", fontsize=7.5)
        if table.mixed and any(r.kind == "measured" for r in table.rows):
            _source_legend(figure)
    return figure


def _method(row: Row) -> str:
    """Name of a row, with its ablation ticks, since rows of an ablation share a name."""
    on = [word for key, word in TICKS.items() if row.values.get(key) == TICK]
    name = _short(row.values["method"])
    return f"{name} ({', '.join(on)})" if on else name


def _panels(columns: Sequence[Column]) -> dict[str, tuple[int, int]]:
    """Row and column of each panel: header groups side by side, or below each other where that needs fewer rows;
    five panels in a row where there are no groups."""
    groups: dict[str, list[Column]] = {}
    for column in columns:
        groups.setdefault(column.group or column.key, []).append(column)
    most = max(map(len, groups.values()))
    if most == 1:
        return {c.key: divmod(i, 5) for i, c in enumerate(columns)}
    pairs = [(c.key, i, j) for j, group in enumerate(groups.values()) for i, c in enumerate(group)]
    return {key: (j, i) if len(groups) < most else (i, j) for key, i, j in pairs}


def _source_legend(figure: Figure) -> None:
    measured = Patch(facecolor=BLUE, label="measured, with 95% interval")
    paper = Patch(facecolor=PAPER, hatch="////", edgecolor="white", label="† published in the paper")
    figure.legend(handles=[measured, paper], loc="outside upper right", ncols=2)


def _bars(axis: Axes, values: Sequence[Any], rows: Sequence[Row], colours: Sequence[str]) -> None:
    for y, (value, row, colour) in enumerate(zip(values, rows, colours, strict=True)):
        if not isinstance(value, Rate) or not value.known:
            axis.text(2, y, "–", va="center", color=MUTED)
            continue
        paper = row.kind == "published"
        axis.barh(
            y, 100 * value.value, 0.72, color=colour, hatch="////" if paper else None,
            edgecolor="white" if paper else colour, linewidth=0,
        )  # fmt: skip
        end = 100 * value.value
        if not math.isnan(value.low):
            axis.plot([100 * value.low, 100 * value.high], [y, y], color=INK, lw=0.9, solid_capstyle="butt")
            end = 100 * value.high
        axis.text(end + 3, y, value.text(), va="center", fontsize=7, color=MUTED if paper else INK)
    axis.set_xlim(0, 140 if any(isinstance(v, Rate) and v.counts for v in values) else 122)
    axis.set_xticks([0, 50, 100])
    axis.axvline(0, color=MUTED, lw=0.6)
    axis.spines["left"].set_visible(False)
    axis.spines["bottom"].set_bounds(0, 100)


def heat_map(run: Run) -> Figure | None:
    """Success per task: one row per cell, one square per task.

    A square is placed at the task's number (`apt-bench ls tasks`). If any task has no number, the squares have the
    order of the per-task table.
    """
    frames = cell_frames(run, finished=True)
    found = {
        key: episodes.groupby("task", observed=True).success.mean().sort_index()
        for key, episodes in frames.items()
        if len(episodes)
    }
    if not found:
        return None
    numbered = all(set(rates.index) <= task_numbers(*key).keys() for key, rates in found.items())
    lines = [
        (cell_label(*k), _placed(rates, task_numbers(*k) if numbered else {})) for k, rates in found.items()
    ]
    width = max(len(r) for _, r in lines)
    grid = np.full((len(lines), width), np.nan)
    for i, (_, rates) in enumerate(lines):
        grid[i, : len(rates)] = 100 * rates
    with style():
        figure = Figure(figsize=(min(WIDTH, max(3.4, 1.8 + 0.46 * width)), 0.75 + 0.27 * len(lines)))
        axis = figure.subplots()
        scale = LinearSegmentedColormap.from_list("success", ["#F3F3F3", SKY, BLUE])
        axis.pcolormesh(grid, cmap=scale, vmin=0, vmax=100, edgecolors="white", linewidth=1)
        if width <= 25:
            for (i, j), value in np.ndenumerate(grid):
                if not np.isnan(value):
                    ink = "white" if value > 70 else INK
                    text = percent(value / 100)
                    axis.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=ink, fontsize=7)
        axis.set_yticks(np.arange(len(lines)) + 0.5, [_short(name) for name, _ in lines])
        every = 1 if width <= 25 else 10
        numbers = range(0, width if numbered else 0, every)
        axis.set_xticks([n + 0.5 for n in numbers], [str(n) for n in numbers])
        axis.invert_yaxis()
        axis.tick_params(length=0)
        axis.set_xlabel("Task number (apt-bench ls tasks)" if numbered else "Tasks as in the per-task table")
        axis.set_title(f"{_short(run.label)}: success per task, %")
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure


def _placed(rates: Any, numbers: Mapping[str, int]) -> np.ndarray:
    """The rates at their tasks' numbers, nan between them; in their own order without numbers."""
    if not numbers:
        return rates.to_numpy()
    line = np.full(1 + max(numbers[t] for t in rates.index), np.nan)
    line[[numbers[t] for t in rates.index]] = rates.to_numpy()
    return line


def _short(name: object) -> str:
    """A name that is short enough for a figure."""
    return one_line(name, 48)


_STYLES = {
    "success": (GREEN, ""),
    "memorised_task": (RED, "\\\\\\\\"),
    "wrong_object": (PURPLE, "////"),
    "wrong_place": (YELLOW, "xxxx"),
    "dropped": (BLUE, "----"),
    "no_grasp": (ORANGE, ""),
    "no_contact": (BLACK, ""),
    "timeout": (SKY, "...."),
    "error": ("white", "////"),
}
"""Colour and hatch of the outcome classes of envs/outcome_tracker.py: the same in every report."""

_OTHER = ((PAPER, ""), (PAPER, "oooo"), (PAPER, "////"), (PAPER, "||||"), (PAPER, "++++"))


def class_styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Outcome class -> colour and hatch."""
    others = [n for n in names if n not in _STYLES]
    return {**_STYLES, **{n: _OTHER[i % len(_OTHER)] for i, n in enumerate(others)}}


def outcome_chart(runs: Sequence[Run]) -> Figure | None:
    """Share of each outcome class, stacked to 100% per cell."""
    names = outcome_classes(runs)
    styles = class_styles(names)
    names.sort(key=list(styles).index)  # the same order in every report
    names.sort(key="error".__eq__)
    bars: list[tuple[str, Any] | None] = []
    for run in runs:
        for key, episodes in cell_frames(run).items():
            if len(episodes):
                bars.append((cell_label(*key), episodes.outcome_class.value_counts(normalize=True)))
        bars.append(None)
    if not names:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 0.8 + 0.17 * len(bars) + 0.1 * (len(names) // 6)))
        axis = figure.subplots()
        y, at, labels = 0, [], []
        starts = iter([r for r in runs if len(r.frame)])
        fresh = True
        for bar in bars:
            if bar is None:
                fresh = True
                continue
            if fresh:
                run = next(starts)
                if len(runs) > 1:
                    axis.text(0, y + 0.35, _short(run.label), fontweight="bold", va="bottom", fontsize=8)
                    y += 1
                fresh = False
            _stack(axis, y, bar[1], names, styles)
            at.append(y)
            labels.append(_short(bar[0]))
            y += 1
        axis.set_yticks(at, labels)
        axis.set_ylim(y - 0.4, -0.6)
        axis.set_xlim(0, 100)
        axis.set_xlabel("Share of episodes, %")
        axis.spines["left"].set_visible(False)
        handles = [
            Patch(
                facecolor=styles[n][0],
                hatch=styles[n][1],
                edgecolor=_edge(styles[n][0]),
                lw=0.4,
                label=n.replace("_", " ") + (" (missing data)" if n == "error" else ""),
            )
            for n in names
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 5), handlelength=1.6)
    return figure


def _edge(colour: str) -> str:
    return INK if colour in ("white", YELLOW, SKY, PAPER) else "white"


def _stack(
    axis: Axes, y: float, shares: Any, names: Sequence[str], styles: dict[str, tuple[str, str]]
) -> None:
    left = 0.0
    for name in names:
        share = 100 * float(shares.get(name, 0.0))
        if share:
            colour, hatch = styles[name]
            axis.barh(
                y, share, 0.78, left=left, color=colour, hatch=hatch, edgecolor=_edge(colour), linewidth=0.4
            )
            if share >= 6:
                box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"} if hatch else None
                ink = INK if hatch or colour in (YELLOW, SKY, ORANGE, PAPER, "white") else "white"
                axis.text(left + share / 2, y, f"{share:.0f}", ha="center", va="center_baseline", fontsize=6.5,
                          color=ink, bbox=box)  # fmt: skip
            left += share


Mark = tuple[str, str, str, float]
"""Name, colour, marker, and vertical offset from the middle of the row."""


def language_chart(table: Table | None) -> Figure | None:
    """How often the policy follows the instruction and how often it does the original task, per cell."""
    styles = ((BLUE, "o", -0.18), (GREEN, "s", 0.0), (RED, "X", 0.18))
    marks: dict[str, Mark] = {
        k: (name, *style) for (k, name), style in zip(LANGUAGE.items(), styles, strict=True)
    }
    return _marks(table, {**marks, "success": ("Success", INK, "|", 0.0)}, ("cell",))


def probe_chart(table: Table | None) -> Figure | None:
    """Success under the cell's own prompt and under a probe, and the share of episodes that change under the probe and
    in a repeat."""
    marks: dict[str, Mark] = {
        "own": ("Success, own prompt", INK, "|", 0.0),
        "probed": ("Success, probe", BLUE, "o", -0.18),
        "floor": ("Noise floor: sensitivity of a repeat", MUTED, "s", 0.27),
        "sensitivity": ("Sensitivity", RED, "X", 0.18),
    }
    return _marks(table, marks, ("cell", "probe"))


def _marks(table: Table | None, marks: Mapping[str, Mark], label: Sequence[str]) -> Figure | None:
    """One line per row of the table, grouped by run; one mark with its interval per rate."""
    if table is None:
        return None
    runs = list(dict.fromkeys(str(r.values["run"]) for r in table.rows))
    with style():
        figure = Figure(figsize=(WIDTH, 0.8 + 0.21 * (len(table.rows) + len(runs) * (len(runs) > 1))))
        axis = figure.subplots()
        y, at, labels, before = 0.0, [], [], None
        for row in table.rows:
            if len(runs) > 1 and row.values["run"] != before:
                axis.text(0, y + 0.35, _short(row.values["run"]), fontweight="bold", va="bottom", fontsize=8)
                y += 1
            before = row.values["run"]
            axis.axhline(y, color="#E4E4E4", lw=0.6, zorder=0)
            for key, (_, colour, mark, offset) in marks.items():
                value = row.values.get(key)
                if isinstance(value, Rate) and value.known:
                    axis.plot([100 * value.low, 100 * value.high], [y + offset] * 2, color=colour, lw=0.9)
                    size, edge = (9, 1.6) if mark == "|" else (4.2, 0.4)
                    axis.plot(100 * value.value, y + offset, mark, color=colour, ms=size, mew=edge,
                              mec=colour if mark == "|" else "white")  # fmt: skip
            at.append(y)
            labels.append(": ".join(_short(row.values[k]) for k in label))
            y += 1
        axis.set_yticks(at, labels)
        axis.set_ylim(y - 0.4, -0.6)
        axis.set_xlim(-1.5, 101.5)
        axis.set_xlabel("Share of episodes, % (lines: 95% intervals)")
        axis.spines["left"].set_visible(False)
        handles = [
            Line2D([], [], color=c, marker=m, ls="", ms=9 if m == "|" else 5, mew=1.6 if m == "|" else 0.4, label=n)
            for n, c, m, _ in marks.values()
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=4, handletextpad=0.3)
    return figure


def gain_chart(table: Table | None) -> Figure | None:
    """2-Stage minus 1-Stage in points, as in the paper's Fig. 4: one panel per cell, one bar per pair of policies."""
    if table is None:
        return None
    columns = [c for c in table.columns if any(isinstance(r.values.get(c.key), Rate) for r in table.rows)]
    names = [_short(r.values["method"]) for r in table.rows]
    colours = _colours(table.rows)
    known = [v for r in table.rows for v in r.values.values() if isinstance(v, Rate) and v.known]
    ends = [100 * x for v in known for x in (v.value, v.low, v.high) if not math.isnan(x)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    pad = 0.32 * (high - low or 1.0)
    with style():
        height = 0.75 + 0.17 * len(names)
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)
        for axis, column in zip(axes[0], columns, strict=True):
            axis.set_title(_short(column.label))
            for y, (row, colour) in enumerate(zip(table.rows, colours, strict=True)):
                value = row.values.get(column.key)
                if not isinstance(value, Rate) or not value.known:
                    axis.text(0, y, " –", va="center", color=MUTED)
                    continue
                paper = row.kind == "published"
                axis.barh(y, 100 * value.value, 0.72, color=colour, hatch="////" if paper else None,
                          edgecolor="white" if paper else colour, linewidth=0)  # fmt: skip
                if not math.isnan(value.low):
                    axis.plot([100 * value.low, 100 * value.high], [y, y], color=INK, lw=0.9)
                end = max(0.0, *(100 * x for x in (value.value, value.high) if not math.isnan(x)))
                axis.text(
                    end + pad / 12, y, value.text(), va="center", color=MUTED if paper else INK, fontsize=7
                )
            axis.axvline(0, color=MUTED, lw=0.6)
            axis.set_xlim(low - pad / 6, high + pad)
            axis.spines["left"].set_visible(False)
        axes[0, 0].set_yticks(range(len(names)), names)
        axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
        figure.supxlabel("2-Stage minus 1-Stage, percentage points", fontsize=7.5)
    return figure
