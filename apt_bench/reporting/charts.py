"""The figures of a report. Each function returns a figure, or None where there is nothing to draw."""

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

from apt_bench.analysis.run import Run, cell_label, cell_summaries, task_numbers
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
from apt_bench.reporting.details import LANGUAGE, classes
from apt_bench.reporting.table import Column, Rate, Row, Table, percent
from apt_bench.reporting.tables import TICK, TICKS


def _colours(rows: Sequence[Row]) -> list[str]:
    """Measured rows in series colours, published ones grey."""
    measured = iter(SERIES * (len(rows) // len(SERIES) + 1))
    return [PAPER if r.kind == "published" else next(measured) for r in rows]


def success_chart(table: Table) -> Figure | None:
    """One panel per cell, one bar per method: measured ones coloured with their 95% intervals, published ones grey and
    hatched. Panels follow the table's header groups: a column of panels each."""
    columns = [c for c in table.columns if any(isinstance(r.values.get(c.key), Rate) for r in table.rows)]
    if not columns or not table.rows:
        return None
    at = _panels(columns)
    stacked = (
        len({at[c.key][0] for c in columns if c.group == columns[0].group}) > 1
    )  # a group is a column of panels
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
            first = (
                not columns[0].group or stacked or at[column.key][1] == 0
            )  # else the line's first panel says it
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
    """Name of a row, with the ablation ticks that tell it from others of the same name."""
    on = [word for key, word in TICKS.items() if row.values.get(key) == TICK]
    name = _short(row.values["method"])
    return f"{name} ({', '.join(on)})" if on else name


def _panels(columns: Sequence[Column]) -> dict[str, tuple[int, int]]:
    """Line and place of each column's panel: header groups side by side, or one below the other where that is flatter;
    lines of five where there are no groups."""
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
    """Success per task: a line per cell, a square per task at its number (`apt-bench ls tasks`); in the order of the
    per-task table where a task has none."""
    done = run.frame[run.frame.done]
    found = {}
    for key in cell_summaries(run):
        part = done[(done.suite == key[0]) & (done.cell == key[1])]
        rates = part.groupby("task", observed=True).success.mean().sort_index()
        if len(rates):
            found[key] = rates
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
    """The rates at their tasks' numbers, nan between; in their own order where there are no numbers."""
    if not numbers:
        return rates.to_numpy()
    line = np.full(1 + max(numbers[t] for t in rates.index), np.nan)
    line[[numbers[t] for t in rates.index]] = rates.to_numpy()
    return line


def _short(name: object) -> str:
    """A name that leaves room for what it names."""
    return one_line(name, 48)


# The classes of envs/outcome.py keep their looks in every report; others take what is left.
_LOOKS = {
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
_OTHER = ((PAPER, ""), (PAPER, "oooo"), (PAPER, "////"), (PAPER, "||||"), (PAPER, "++++"))


def class_looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and hatch by outcome class."""
    others = [n for n in names if n not in _LOOKS]
    return {**_LOOKS, **{n: _OTHER[i % len(_OTHER)] for i, n in enumerate(others)}}


def outcome_chart(runs: Sequence[Run]) -> Figure | None:
    """Outcome classes, stacked to 100% per cell."""
    names = classes(runs)
    looks = class_looks(names)
    names.sort(key=list(looks).index)  # one order in every report
    names.sort(key="error".__eq__)
    bars: list[tuple[str, Any] | None] = []
    for run in runs:
        for suite, cell in cell_summaries(run):
            part = run.frame[(run.frame.suite == suite) & (run.frame.cell == cell)]
            if len(part):
                bars.append((cell_label(suite, cell), part.klass.value_counts(normalize=True)))
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
            _stack(axis, y, bar[1], names, looks)
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
                facecolor=looks[n][0],
                hatch=looks[n][1],
                edgecolor=_edge(looks[n][0]),
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
    axis: Axes, y: float, shares: Any, names: Sequence[str], looks: dict[str, tuple[str, str]]
) -> None:
    left = 0.0
    for name in names:
        share = 100 * float(shares.get(name, 0.0))
        if share:
            colour, hatch = looks[name]
            axis.barh(
                y, share, 0.78, left=left, color=colour, hatch=hatch, edgecolor=_edge(colour), linewidth=0.4
            )
            if share >= 6:
                box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"} if hatch else None
                ink = INK if hatch or colour in (YELLOW, SKY, ORANGE, PAPER, "white") else "white"
                axis.text(left + share / 2, y, f"{share:.0f}", ha="center", va="center_baseline", fontsize=6.5,
                          color=ink, bbox=box)  # fmt: skip
            left += share


Mark = tuple[str, str, str, float]  # name, colour, marker, offset from the line's middle


def language_chart(table: Table | None) -> Figure | None:
    """Goes where told against does the memorised task, per cell."""
    looks = ((BLUE, "o", -0.18), (GREEN, "s", 0.0), (RED, "X", 0.18))
    marks: dict[str, Mark] = {
        k: (name, *look) for (k, name), look in zip(LANGUAGE.items(), looks, strict=True)
    }
    return _marks(table, {**marks, "success": ("Success", INK, "|", 0.0)}, ("cell",))


def probe_chart(table: Table | None) -> Figure | None:
    """Success under the own prompt and under another one, and the share of episodes that change: under the other
    prompt, and when the same one is sent again."""
    marks: dict[str, Mark] = {
        "own": ("Success, own prompt", INK, "|", 0.0),
        "probed": ("Success, probe", BLUE, "o", -0.18),
        "floor": ("Noise floor: sensitivity of a repeat", MUTED, "s", 0.27),
        "sensitivity": ("Sensitivity", RED, "X", 0.18),
    }
    return _marks(table, marks, ("cell", "probe"))


def _marks(table: Table | None, marks: Mapping[str, Mark], label: Sequence[str]) -> Figure | None:
    """One line per row of the table under its run's name, a mark with its interval per rate."""
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
    """2-Stage minus 1-Stage, in points: one panel per cell, one bar per pair of policies (the paper's Fig. 4)."""
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
