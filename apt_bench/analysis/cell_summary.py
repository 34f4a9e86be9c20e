"""One summary per cell: requested and finished episodes, success rate, coverage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from apt_bench.analysis import stats
from apt_bench.analysis.run import Run
from apt_bench.analysis.suite_labels import cell_label, suite_order

COVERAGE_GATE = 0.98
"""A cell with a smaller share of finished episodes does not enter an average."""


@dataclass(frozen=True)
class CellSummary:
    """The episodes of one cell of one run, as counts.

    `finished` episodes ended in success, failure or timeout. `errors` are recorded episodes without a result: they
    reduce coverage and never count as failures. `unavailable`: task -> why it cannot be run.
    """

    suite: str
    cell: str
    label: str
    requested: int
    finished: int
    successes: int
    errors: int
    unavailable: Mapping[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> stats.Estimate:
        """Success rate with Wilson's 95% interval; nan where no episode is finished."""
        value = self.successes / self.finished if self.finished else math.nan
        return stats.Estimate(value, *stats.wilson(self.successes, self.finished))

    @property
    def missing(self) -> int:
        """Requested episodes without a result."""
        return max(0, self.requested - self.finished)

    @property
    def coverage(self) -> float:
        """Finished / requested episodes; nan where none was requested."""
        return self.finished / self.requested if self.requested else math.nan

    @property
    def covered(self) -> bool:
        """Whether enough episodes are finished for the cell to enter an average."""
        return self.finished > 0 and self.finished >= COVERAGE_GATE * self.requested

    @property
    def bounds(self) -> tuple[float, float]:
        """Success rate if every missing episode failed, and if every one succeeded."""
        total = max(self.requested, self.finished)
        if not total:
            return 0.0, 1.0
        return self.successes / total, (self.successes + total - self.finished) / total


def cell_frames(run: Run, finished: bool = False) -> dict[tuple[str, str], pd.DataFrame]:
    """The episodes of each requested cell under its own prompt, by (suite, cell), in the suite's order.

    Args:
        run: The run.
        finished: Leave out episodes that ended in an error.

    Returns:
        One frame per cell; it is empty where the cell has no such episode.
    """
    frame = run.frame[run.frame.finished] if finished else run.frame
    groups = {(str(s), str(c)): g for (s, c), g in frame.groupby(["suite", "cell"], observed=True)}
    return {key: groups.get(key, frame.iloc[:0]) for key in sorted(run.requested, key=suite_order)}


def cell_summaries(run: Run) -> dict[tuple[str, str], CellSummary]:
    """Summaries by (suite, cell), in the suite's order."""
    return {key: _summary(run, *key, g, run.requested[key]) for key, g in cell_frames(run).items()}


def probe_summaries(run: Run) -> dict[tuple[str, str, str], CellSummary]:
    """Summaries by (suite, cell, language probe), in the suite's order."""
    names = ["suite", "cell", "prompt"]
    groups = {(str(s), str(c), str(p)): g for (s, c, p), g in run.probed.groupby(names, observed=True)}
    order = list(dict.fromkeys(p for _, _, p in run.requested_probes))
    keys = sorted(run.requested_probes, key=lambda k: (suite_order(k[:2]), order.index(k[2])))
    nothing = run.probed.iloc[:0]
    return {k: _summary(run, *k[:2], groups.get(k, nothing), run.requested_probes[k]) for k in keys}


def _summary(run: Run, suite: str, cell: str, episodes: pd.DataFrame, requested: int) -> CellSummary:
    finished = int(episodes.finished.sum())
    return CellSummary(
        suite,
        cell,
        cell_label(suite, cell),
        requested=requested,
        finished=finished,
        successes=int(episodes.success.sum()),
        errors=len(episodes) - finished,
        unavailable=run.unavailable.get(cell, {}),
    )


def macro_average(frame: pd.DataFrame) -> stats.Estimate:
    """Mean over cells of the mean over tasks of the success rate, with its task-clustered 95% interval."""
    finished = frame[frame.finished]
    return stats.macro_mean(
        finished.success.to_numpy(dtype=float),
        finished.groupby(["cell", "task"], observed=True).ngroup().to_numpy(),
        finished.cell.cat.codes.to_numpy(),
    )
