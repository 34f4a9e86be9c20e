"""`compare`: do two policies differ? Two runs are matched episode by episode."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pandas as pd

from apt_bench.analysis import stats
from apt_bench.analysis.cell_summary import cell_frames
from apt_bench.analysis.contrasts import Contrast, adjusted, join, paired_contrast, unpaired_contrast
from apt_bench.analysis.run import Run, sequential_notes
from apt_bench.analysis.suite_labels import cell_label, suite_order, task_numbers
from apt_bench.core.errors import UserError
from apt_bench.runs.protocol import differing_settings, in_short, policy_settings


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        overall: The mean over cells and tasks.
        cells: One contrast per cell, with Holm's adjustment.
        tasks: One contrast per task, with Benjamini and Hochberg's adjustment; empty for runs that are not matched.
        unmatched_a: Finished episodes of A that B does not have; they do not count.
        unmatched_b: The same of B.
        protocol_settings: Protocol settings that differ.
        policy_settings: The policies' own settings that differ.
        cautions: Sentences about stopping rules and unfinished runs.
    """

    overall: Contrast
    cells: tuple[Contrast, ...]
    tasks: tuple[Contrast, ...]
    unmatched_a: int
    unmatched_b: int
    protocol_settings: tuple[str, ...]
    policy_settings: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()


def require_same_protocol(a: Run, b: Run, force: bool) -> list[str]:
    """The protocol settings that differ. Raises UserError where there are any, unless `force`."""
    settings = differing_settings(a.protocol, b.protocol)
    if settings and not force:
        raise UserError(
            f"{a.label} and {b.label} ran under different protocols ({in_short(settings)}). Run one of them again with "
            "the other's settings, or add --force to compare them anyway."
        )
    return settings


def compare(a: Run, b: Run, force: bool = False) -> Comparison:
    """Compare A with B overall, per cell and per task.

    Episodes are matched by their key. If the runs have no common key (real trials, imported files), their cells are
    compared as independent samples.

    Args:
        a: Run A.
        b: Run B; differences are A - B.
        force: Compare although the protocols differ.

    Raises:
        UserError: The protocols differ, or the runs have no common cell.
    """
    settings = require_same_protocol(a, b, force)
    pairs = matched(a, b)
    if len(pairs):
        overall = paired_contrast("Overall", pairs)
        cells = [paired_contrast(name, part) for name, part in by_cell(pairs)]
        tasks = [
            dataclasses.replace(
                paired_contrast(f"{cell_label(*cell)}: {t}", part), number=task_numbers(*cell).get(str(t))
            )
            for (s, c), group in pairs.groupby(["suite", "cell"], observed=True)
            for cell in [(str(s), str(c))]
            for t, part in group.groupby("task", observed=True)
        ]
        left = int(a.frame.finished.sum()) - len(pairs), int(b.frame.finished.sum()) - len(pairs)
    else:
        sides = [{k: f for k, f in cell_frames(r, finished=True).items() if len(f)} for r in (a, b)]
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
        tuple(settings),
        tuple(policy_settings(a.protocol, b.protocol, a.label, b.label)),
        (*unfinished(a, b), *sequential_notes((a, b))),
    )


def matched(a: Run, b: Run) -> pd.DataFrame:
    """Finished episodes that both runs have (`contrasts.join`)."""
    return join(a.frame, b.frame)


def nothing_shared(a: Run, b: Run, where: str) -> str:
    """A sentence with the reason why two runs cannot be compared."""
    for r in (a, b):
        if not r.frame.finished.any():
            return f"{r.label} has no finished episode."
    return f"{a.label} and {b.label} have no finished episode {where}."


def unfinished(*runs: Run) -> list[str]:
    """A caution for each run with requested episodes that have no result."""
    found = []
    for run in runs:
        finished, requested = int(run.frame.finished.sum()), sum(run.requested.values())
        if finished < requested and not run.sequential:
            share = f"{finished} of the {requested} requested episodes have a result"
            found.append(f"{run.label} is not finished: {share}.")
    return found


def by_cell(pairs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Label and matched episodes of each cell, in the suite's order."""
    groups = {(str(s), str(c)): part for (s, c), part in pairs.groupby(["suite", "cell"], observed=True)}
    return [(cell_label(*key), groups[key]) for key in sorted(groups, key=suite_order)]
