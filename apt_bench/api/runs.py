"""Reads and compares run directories: `load_run`, `Run`, `compare`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from apt_bench.analysis import run as data
from apt_bench.analysis.cell_summary import cell_summaries
from apt_bench.analysis.frame import INTERNAL
from apt_bench.api._values import path_of

if TYPE_CHECKING:
    from apt_bench.analysis.compare import Comparison

SUMMARY = [
    "suite", "cell", "successes", "episodes", "rate", "low", "high", "requested", "coverage", "errors",
]  # fmt: skip
"""Columns of `Run.summary`."""


@dataclass(frozen=True)
class Run:
    """One run directory, read. `evaluate` and `load_run` return it. `data` is internal."""

    data: data.Run

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.data.path

    @property
    def name(self) -> str:
        """The policy's name."""
        return self.data.label

    @property
    def protocol(self) -> dict[str, Any]:
        """`protocol.json`: everything that may change a score, and its hash."""
        return dict(self.data.protocol)

    @property
    def info(self) -> dict[str, Any]:
        """`run.json`: policy, versions, command, machine, times, and the requested episodes."""
        return dict(self.data.info)

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """One row per episode, including those under language probes (`prompt` is then the probe's name).

        The columns have stable names; docs/api.md gives their meanings and units. After the fixed columns come
        `seconds_*` (seconds per part of the episode) and `score_*` (scores of a composite task), one for each recorded
        part.
        """
        frame = pd.concat([self.data.frame, self.data.probed]).sort_index().reset_index(drop=True)
        return frame.drop(columns=INTERNAL)

    def summary(self) -> pd.DataFrame:
        """One row per cell, over the episodes under the cells' own prompts.

        Columns: `suite`, `cell`; `successes`, `episodes` (finished ones); `rate` = successes / episodes with its Wilson
        95% interval `low`, `high`, all fractions (NaN, 0, 1 without a finished episode); `requested` episodes,
        `coverage` = episodes / requested, `errors` (recorded episodes without a result).
        """
        rows = []
        for cell in cell_summaries(self.data).values():
            rate = cell.rate
            rows.append(
                {
                    "suite": cell.suite,
                    "cell": cell.cell,
                    "successes": cell.successes,
                    "episodes": cell.finished,
                    "rate": rate.value,
                    "low": rate.low,
                    "high": rate.high,
                    "requested": cell.requested,
                    "coverage": cell.coverage if cell.requested else 1.0,
                    "errors": cell.errors,
                }
            )
        return pd.DataFrame(rows, columns=SUMMARY)

    def __repr__(self) -> str:
        own = self.data.frame
        return f"Run({str(self.path)!r}: {self.name}, {int(own.success.sum())} of {int(own.finished.sum())} episodes)"


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run directory.

    Args:
        path: The directory that `evaluate` or `apt-bench run` wrote.

    Raises:
        UserError: There is no run, or a damaged one.
    """
    return Run(data.load_run(path_of(path, "path")))


def compare(
    a: Run | str | os.PathLike[str], b: Run | str | os.PathLike[str], force: bool = False
) -> Comparison:
    """Compare two runs, matched episode by episode, as `apt-bench compare` does.

    Args:
        a: A run, or its directory.
        b: The other run, or its directory; differences are a - b.
        force: Compare although the protocols differ.

    Returns:
        The comparison: `overall`, `cells` and `tasks` hold `contrasts.Contrast` objects (rates, difference with its 95%
        interval, p, verdict); `cautions` are sentences about limits.

    Raises:
        UserError: The runs share no cell, or their protocols differ and `force` is False.
    """
    from apt_bench.analysis.compare import compare as paired

    first, second = (one if isinstance(one, Run) else load_run(one) for one in (a, b))
    return paired(first.data, second.data, force)
