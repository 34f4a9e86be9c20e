"""`compare`: do two policies differ? Two runs, matched episode by episode."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from apt_bench.analysis import stats
from apt_bench.analysis.contrasts import Contrast, adjusted, join, paired_contrast, unpaired_contrast
from apt_bench.analysis.run import (
    Run,
    cell_label,
    protocol_differences,
    sequential_notes,
    suite_order,
)
from apt_bench.core.errors import UserError
from apt_bench.runs.records import policy_settings


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    overall: Contrast
    cells: tuple[Contrast, ...]
    tasks: tuple[Contrast, ...]
    alone_a: int  # finished episodes of A that B has not, and so do not count
    alone_b: int
    knobs: tuple[str, ...]  # protocol settings that differ
    settings: tuple[str, ...] = ()  # the policies' own settings that differ
    cautions: tuple[str, ...] = ()  # of runs that were played under a stopping rule, or are not finished


def require_same_protocol(a: Run, b: Run, force: bool) -> list[str]:
    """The differing settings. Raises UserError where there are any, unless `force`."""
    knobs = protocol_differences(a, b)
    if knobs and not force:
        shown = "; ".join(knobs[:8]) + (f"; and {len(knobs) - 8} more" if len(knobs) > 8 else "")
        raise UserError(
            f"{a.label} and {b.label} ran under different protocols ({shown}). Run one of them again under the other's "
            "settings, or compare anyway with --force."
        )
    return knobs


def compare(a: Run, b: Run, force: bool = False) -> Comparison:
    """A against B: per cell (Holm), per task (Benjamini-Hochberg) and overall, the mean over cells and tasks.

    Matched by episode key. Without a single common key (real trials, imported files) the same unpaired. Raises
    UserError where they share no cell.
    """
    knobs = require_same_protocol(a, b, force)
    pairs = matched(a, b)
    if len(pairs):
        overall = paired_contrast("Overall", pairs)
        cells = [paired_contrast(name, part) for name, part in by_cell(pairs)]
        tasks = [
            paired_contrast(f"{cell_label(str(s), str(c))}: {t}", part)
            for (s, c, t), part in pairs.groupby(["suite", "cell", "task"], observed=True)
        ]
        left = int(a.frame.done.sum()) - len(pairs), int(b.frame.done.sum()) - len(pairs)
    else:
        sides = [_cells(r) for r in (a, b)]
        shared = sorted(set(sides[0]) & set(sides[1]), key=suite_order)
        if not shared:
            raise UserError(nothing_shared(a, b, "in a common cell") + " Nothing to compare.")
        frames = {key: (sides[0][key], sides[1][key]) for key in shared}
        overall, left = unpaired_contrast("Overall", [*frames.values()])
        cells = [unpaired_contrast(cell_label(*key), [pair])[0] for key, pair in frames.items()]
        tasks = []
        outside = [sum(len(f) for k, f in side.items() if k not in frames) for side in sides]
        left = left[0] + outside[0], left[1] + outside[1]
    return Comparison(
        overall,
        adjusted(cells, stats.holm),
        adjusted(tasks, stats.benjamini_hochberg),
        *left,
        tuple(knobs),
        tuple(policy_settings(a.protocol, b.protocol, a.label, b.label)),
        (*unfinished(a, b), *sequential_notes((a, b))),
    )


def matched(a: Run, b: Run) -> pd.DataFrame:
    """Finished episodes that both runs have, see `contrasts.join`."""
    return join(a.frame, b.frame)


def nothing_shared(a: Run, b: Run, where: str) -> str:
    """Why two runs cannot be compared, for people."""
    for r in (a, b):
        if not r.frame.done.any():
            return f"{r.label} has no finished episode."
    return f"{a.label} and {b.label} have no finished episode {where}."


def unfinished(*runs: Run) -> list[str]:
    """A caution for each run that lacks episodes it was asked for."""
    return [
        f"{r.label} is not finished: {done} of the {asked} episodes asked for."
        for r in runs
        if not r.sequential and (done := int(r.frame.done.sum())) < (asked := sum(r.asked.values()))
    ]


def _cells(run: Run) -> dict[tuple[str, str], pd.DataFrame]:
    done = run.frame[run.frame.done]
    return {(str(s), str(c)): part for (s, c), part in done.groupby(["suite", "cell"], observed=True)}


def by_cell(pairs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Label and pairs of each cell, in the suite's order."""
    groups = {(str(s), str(c)): part for (s, c), part in pairs.groupby(["suite", "cell"], observed=True)}
    return [(cell_label(*key), groups[key]) for key in sorted(groups, key=suite_order)]
