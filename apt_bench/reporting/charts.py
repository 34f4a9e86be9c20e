"""The figures of a report. Each function returns a figure, or None where there is no data.

A figure has one panel per cell, measure or run. On the page the panels wrap (`inline_svg`), so each has its own labels.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from apt_bench.analysis.cell_summary import cell_frames
from apt_bench.analysis.run import Run
from apt_bench.analysis.suite_labels import cell_label, task_numbers
from apt_bench.core.text import one_line
from apt_bench.core.wording import in_words
from apt_bench.reporting.chart_style import (
    BLACK,
    BLUE,
    GREEN,
    INK,
    MUTED,
    ON_COLOUR,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    YELLOW,
    style,
)
from apt_bench.reporting.episode_tables import LANGUAGE, outcome_classes
from apt_bench.reporting.headline_tables import TICK, TICKS
from apt_bench.reporting.table import Rate, Row, Table, Value, percent
from apt_bench.suites.probes import REPEAT

MOST_TASKS = 300
"""Tasks in the heat map, at most; the table has all of them."""


@dataclass(frozen=True)
class Bar:
    """A bar with its interval. `mark`: a value that it is compared with, drawn as an upright line."""

    label: str
    value: Value
    colour: str
    published: bool = False
    mark: Value = None


Panel = tuple[str, Sequence[Bar]]
"""Title and bars. Bars with the label of the one before belong together."""


def success_chart(table: Table, colours: Mapping[str, str]) -> Figure | None:
    """Success of each run, with its 95% interval.

    With the paper's rows there is one panel per cell and one bar per method; the paper's are grey and hatched. Without,
    there is one panel, with the runs' bars together in each cell. Cells that no run has take no room.
    """
    measured = [r for r in table.rows if r.kind == "measured"]
    columns = [
        c for c in table.columns
        if any(isinstance(v := r.values.get(c.key), Rate) and v.known for r in measured or table.rows)
    ]  # fmt: skip
    if not columns:
        return None
    names = {c.key: _short(f"{c.group} {c.label}".strip()) for c in columns}
    if not table.mixed:
        bars = [
            Bar(names[c.key], v, colours[str(r.values["method"])])
            for c in columns
            for r in measured
            if isinstance(v := r.values.get(c.key), Rate) and v.known
        ]
        return _bar_chart([("Success, %", bars)], colours)
    panels = [
        (names[c.key], [Bar(_method(r), r.values.get(c.key), *_source(r, colours)) for r in table.rows])
        for c in columns
    ]
    return _bar_chart(panels, colours, across=3)


def _source(row: Row, colours: Mapping[str, str]) -> tuple[str, bool]:
    """Colour of a row, and whether it is the paper's."""
    paper = row.kind == "published"
    return (PAPER if paper else colours.get(str(row.values["method"]), BLUE)), paper


def _method(row: Row) -> str:
    """Name of a row, with its ablation ticks, since rows of an ablation share a name."""
    on = [word for key, word in TICKS.items() if row.values.get(key) == TICK]
    name = _short(row.values["method"])
    return f"{name} ({', '.join(on)})" if on else name


def language_chart(table: Table | None, colours: Mapping[str, str]) -> Figure | None:
    """Per measure: how often each run follows the instruction, and how often it does the original task, by cell."""
    if table is None:
        return None
    measures = {**LANGUAGE, "success": "Success"}
    return _bar_chart(
        [(f"{name}, %", _of_rows(table.rows, key, colours)) for key, name in measures.items()], colours
    )


def probe_chart(table: Table | None, colours: Mapping[str, str]) -> Figure | None:
    """Per probe: success under it beside success under the cell's own prompt, and the share of episodes that change
    beside that of a repeat."""
    if table is None:
        return None
    panels = []
    probes = dict.fromkeys(str(r.values["probe"]) for r in table.rows)
    for probe in sorted(probes, key=REPEAT.__eq__):
        rows = [r for r in table.rows if r.values["probe"] == probe]
        if probe != REPEAT:
            panels.append((f"{_short(probe)}: success, %", _of_rows(rows, "probed", colours, "own")))
        panels.append(
            (f"{_short(probe)}: episodes that change, %", _of_rows(rows, "sensitivity", colours, "floor"))
        )
    return _bar_chart(panels, colours, mark="the same under the own prompt")


def _of_rows(rows: Sequence[Row], key: str, colours: Mapping[str, str], mark: str = "") -> list[Bar]:
    """The bars of a column, by cell and run."""
    ordered = sorted(
        rows, key=lambda r: list(dict.fromkeys(x.values["cell"] for x in rows)).index(r.values["cell"])
    )
    return [
        Bar(_short(r.values["cell"]), v, colours.get(str(r.values["run"]), BLUE), mark=r.values.get(mark))
        for r in ordered
        if isinstance(v := r.values.get(key), Rate) and v.known
    ]


def gain_chart(table: Table | None) -> Figure | None:
    """2-Stage minus 1-Stage in points, as in the paper's Fig. 4: one panel per cell, one bar per pair of policies."""
    if table is None:
        return None
    columns = [c for c in table.columns if any(isinstance(r.values.get(c.key), Rate) for r in table.rows)]
    panels = [
        (f"{_short(c.label)}: gain, points",
         [Bar(_short(r.values["method"]), r.values.get(c.key), *_source(r, {})) for r in table.rows])
        for c in columns
    ]  # fmt: skip
    return _bar_chart(panels, {})


def _bar_chart(
    panels: Sequence[Panel], colours: Mapping[str, str], across: int = 2, mark: str = ""
) -> Figure | None:
    panels = [(title, bars) for title, bars in panels if bars]
    if not panels:
        return None
    every = [b for _, bars in panels for b in bars]
    values = [b.value for b in every if isinstance(b.value, Rate)]
    ends = [100 * x for v in values for x in (v.value, v.low, v.high) if not math.isnan(x)]
    signed = any(v.signed for v in values)
    low, high = (min(0.0, *ends), max(0.0, *ends)) if signed and ends else (0.0, 100.0)
    handles: list[Any] = [
        Patch(facecolor=to_rgba(c, 0.4), edgecolor=c, label=_short(run))
        for run, c in colours.items()
        if any(b.colour == c and not b.published for b in every)
    ]
    if any(b.published for b in every):
        handles.append(
            Patch(facecolor=PAPER, hatch="////", edgecolor="white", label="† published in the paper")
        )
    if any(isinstance(b.mark, Rate) and b.mark.known for b in every):
        handles.append(Line2D([], [], color=INK, marker="|", ls="", ms=9, mew=1.6, label=mark))
    heights = [0.55 + 0.02 * sum(a.label != b.label for a, b in pairwise(bars)) + 0.17 * len(bars)
               for _, bars in panels]  # fmt: skip

    def draw(axis: Axes, number: int) -> None:
        title, bars = panels[number]
        axis.set_title(title)
        _bars(axis, bars, low, high)

    return _grid(heights, draw, handles, across)


def _bars(axis: Axes, bars: Sequence[Bar], low: float, high: float) -> None:
    span = high - low
    y, first, at, labels, before = 0.0, 0.0, [], [], None
    for bar in bars:
        if bar.label != before:
            y += 0.25 if before is not None else 0
            at.append(y)
            first = y
            labels.append(_wrapped(bar.label, 24))
        at[-1] = (first + y) / 2
        before = bar.label
        value = bar.value
        if isinstance(value, Rate) and value.known:
            _bar(axis, y, bar, value, span)
        else:
            axis.text(0, y, " –", va="center", color=MUTED)
        if isinstance(bar.mark, Rate) and bar.mark.known:
            axis.plot(100 * bar.mark.value, y, "|", color=INK, ms=9, mew=1.6)
        y += 1
    axis.axvline(0, color=MUTED, lw=0.6)
    axis.set_yticks(at, labels)
    axis.set_ylim(y - 0.5, -0.6)
    axis.set_xlim(low, high + 0.5 * span)
    axis.set_xticks(
        [0, 50, 100] if (low, high) == (0.0, 100.0) else [t for t in axis.get_xticks() if low <= t <= high]
    )
    axis.spines["left"].set_visible(False)
    axis.spines["bottom"].set_bounds(low, high)


def _bar(axis: Axes, y: float, bar: Bar, value: Rate, span: float) -> None:
    at, end = 100 * value.value, max(0.0, 100 * value.value)
    face = bar.colour if bar.published else to_rgba(bar.colour, 0.4)
    edge, hatch = ("white", "////") if bar.published else (bar.colour, None)
    _rectangle(axis, 0, at, y, 0.76, facecolor=face, edgecolor=edge, hatch=hatch, linewidth=0)
    if not math.isnan(value.low):
        ends = [100 * value.low, 100 * value.high]
        axis.plot(ends, [y, y], color=bar.colour, lw=1.3, marker="|", ms=4, mew=1.1)
        end = max(end, ends[1])
    if isinstance(bar.mark, Rate) and bar.mark.known:
        end = max(end, 100 * bar.mark.value)
    count = f" ({value.k}/{value.n})" if value.k is not None and not value.counts else ""
    ink = MUTED if bar.published else INK
    axis.text(end + 0.03 * span, y, value.text() + count, va="center", fontsize=7, color=ink)


def _rectangle(axis: Axes, left: float, width: float, y: float, height: float, **look: Any) -> None:
    """A part of a bar. `Axes.barh` would take longer, because it also finds the limits of the axis."""
    axis.add_artist(Rectangle((left, y - height / 2), width, height, **look))


def _grid(
    heights: Sequence[float], draw: Callable[[Axes, int], None], handles: Sequence[Any] = (), across: int = 2
) -> Figure:
    """Panels of these heights in inches, up to `across` side by side, below a legend."""
    across = min(across, len(heights))
    lines = [max(heights[i : i + across]) for i in range(0, len(heights), across)]
    with style():
        width = WIDTH if across > 1 else WIDTH * 0.62
        inches = 0.065 * sum(len(handle.get_label()) + 8 for handle in handles)  # 8: the sample and the gaps
        columns = len(handles) if inches < width else 2
        figure = Figure(figsize=(width, sum(lines) + 0.17 * math.ceil(len(handles) / max(1, columns))))
        grid = figure.add_gridspec(len(lines), across, height_ratios=lines)
        for number in range(len(heights)):
            axis = figure.add_subplot(grid[divmod(number, across)])
            # No axis has a label. To place one, matplotlib would lay out all tick labels.
            for side in (axis.xaxis, axis.yaxis):
                side.set_label_coords(0, 0)
            draw(axis, number)
        if handles:
            figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=1.6)
    return figure


def heat_map(runs: Sequence[Run]) -> Figure | None:
    """Success per task: one panel per cell, one row per task with its number and name, one column per run.

    The numbers are those of `apt-bench ls tasks`. Where a suite's tasks cannot be listed here, they have none.
    """
    found: dict[tuple[str, str], dict[str, dict[int, tuple[float, int]]]] = {}
    for at, run in enumerate(runs):
        for key, episodes in cell_frames(run, finished=True).items():
            for task, won in episodes.groupby("task", observed=True).success:
                found.setdefault(key, {}).setdefault(str(task), {})[at] = (won.mean(), len(won))
    if not found or sum(map(len, found.values())) > MOST_TASKS:
        return None
    cells = list(found)
    scale = LinearSegmentedColormap.from_list("success", ["#F3F3F3", SKY, BLUE])

    def draw(axis: Axes, number: int) -> None:
        key = cells[number]
        numbers = task_numbers(*key)
        tasks = sorted(found[key].items(), key=lambda t: (numbers.get(t[0], len(numbers)), t[0]))
        shown = [at for at in range(len(runs)) if any(at in rates for _, rates in tasks)]
        grid = np.full((len(tasks), len(shown)), np.nan)
        sizes = set()
        for (i, (_, rates)), (j, at) in ((a, b) for a in enumerate(tasks) for b in enumerate(shown)):
            if at in rates:
                grid[i, j] = 100 * rates[at][0]
                sizes.add(rates[at][1])
                ink = "white" if grid[i, j] > 70 else ON_COLOUR
                axis.text(
                    j + 0.5, i + 0.5, percent(rates[at][0]), ha="center", va="center", color=ink, fontsize=7
                )
        axis.pcolormesh(grid, cmap=scale, vmin=0, vmax=100, edgecolors="white", linewidth=1)
        names = [f"{numbers[t]} {in_words(t)}" if t in numbers else in_words(t) for t, _ in tasks]
        axis.set_yticks(np.arange(len(tasks)) + 0.5, [_wrapped(n, 32) for n in names], fontsize=6.5)
        heads = [_wrapped(_short(runs[at].label), 9) for at in shown]
        axis.set_xticks(np.arange(len(shown)) + 0.5, heads)
        axis.tick_params(length=0, labeltop=True, labelbottom=False)
        axis.set_ylim(len(tasks), 0)
        each = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
        title = f"{_short(cell_label(*key))}, % of {each} episode{'s' if each != '1' else ''}"
        axis.set_title(title, pad=8 + 9 * max(h.count("\n") + 1 for h in heads))  # above the runs' names
        for spine in axis.spines.values():
            spine.set_visible(False)

    return _grid([0.62 + 0.25 * len(found[key]) for key in cells], draw)


def _short(name: object) -> str:
    """A name that is short enough for a figure."""
    return one_line(name, 48)


def _wrapped(name: str, width: int) -> str:
    """A name in at most two lines of a figure."""
    lines = textwrap.wrap(name, width, max_lines=2, placeholder=" ...")
    return "\n".join(lines)


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
    """Share of each outcome class: one panel per run, one bar per cell, stacked to 100%."""
    names = outcome_classes(runs)
    styles = class_styles(names)
    names.sort(key=list(styles).index)  # the same order in every report
    names.sort(key="error".__eq__)
    panels = [(run, {k: e for k, e in cell_frames(run).items() if len(e)}) for run in runs]
    panels = [(run, cells) for run, cells in panels if cells]
    if not panels:
        return None
    handles = [
        Patch(
            facecolor=styles[n][0], hatch=styles[n][1], edgecolor=_edge(styles[n][0]), lw=0.4,
            label=_short(in_words(n)) + (" (missing data)" if n == "error" else ""),
        )
        for n in names
    ]  # fmt: skip

    def draw(axis: Axes, number: int) -> None:
        run, cells = panels[number]
        for y, episodes in enumerate(cells.values()):
            _stack(axis, y, episodes.outcome_class.value_counts(normalize=True), names, styles)
            axis.text(102, y, f"n = {len(episodes)}", va="center", fontsize=7, color=MUTED)
        axis.set_yticks(range(len(cells)), [_wrapped(_short(cell_label(*k)), 24) for k in cells])
        axis.set_ylim(len(cells) - 0.4, -0.6)
        axis.set_xlim(0, 118)
        axis.set_xticks([0, 50, 100])
        axis.spines["bottom"].set_bounds(0, 100)
        axis.spines["left"].set_visible(False)
        axis.set_title(f"{_short(run.label)}: episodes, %")

    return _grid([0.55 + 0.19 * len(cells) for _, cells in panels], draw, handles)


def _edge(colour: str) -> str:
    return ON_COLOUR if colour in ("white", YELLOW, SKY, PAPER) else "white"


def _stack(
    axis: Axes, y: float, shares: Any, names: Sequence[str], styles: dict[str, tuple[str, str]]
) -> None:
    left = 0.0
    for name in names:
        share = 100 * float(shares.get(name, 0.0))
        if share:
            colour, hatch = styles[name]
            look = {"facecolor": colour, "edgecolor": _edge(colour), "hatch": hatch, "linewidth": 0.4}
            _rectangle(axis, left, share, y, 0.78, **look)
            if share >= 6:
                box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"} if hatch else None
                ink = ON_COLOUR if hatch or colour in (YELLOW, SKY, ORANGE, PAPER, "white") else "white"
                axis.text(left + share / 2, y, f"{share:.0f}", ha="center", va="center_baseline", fontsize=6.5,
                          color=ink, bbox=box)  # fmt: skip
            left += share
