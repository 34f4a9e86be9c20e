"""Contrasts of two runs in a cell, in a task or over all cells: episodes are matched here, `differences` tests them.

In a contrast, a task is one instruction in a cell. Where a suite's task is only a template (`to_plate`) and each
initial state has its own instruction and scene, each instruction counts as a task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from apt_bench.analysis import stats
from apt_bench.analysis.differences import FEW, Difference, paired, unpaired
from apt_bench.analysis.frame import KEY

Better = Literal["A better", "B better", "undecided"]

LEVEL = 0.05


@dataclass(frozen=True)
class Contrast:
    """A against B in one cell or task, or overall.

    Attributes:
        name: The cell, the task, or "Overall".
        n_a: Episodes of A; for matched runs the number of pairs.
        n_b: Episodes of B.
        rate_a: Success rate of A, a fraction.
        rate_b: Success rate of B.
        difference: A - B with its 95% interval, which excludes 0 exactly where `p` is at most 0.05.
        p: The p-value of this contrast alone.
        paired: Whether the episodes are matched.
        only_a: Pairs in which only A succeeded.
        only_b: Pairs in which only B succeeded.
        tasks: Number of tasks that the difference rests on (`Difference`).
        uneven: The episodes alone would decide, but the tasks disagree (`Difference`).
        adjusted: p after Holm's (cells) or Benjamini and Hochberg's (tasks) adjustment.
        number: The task's number in its cell, as `apt-bench ls tasks` counts; None for a cell, overall, and where the
            suite is unknown here.
    """

    name: str
    n_a: int
    n_b: int
    rate_a: float
    rate_b: float
    difference: stats.Estimate
    p: float
    paired: bool
    only_a: int = 0
    only_b: int = 0
    tasks: int = 0
    uneven: bool = False
    adjusted: float = 1.0
    number: int | None = None

    @property
    def verdict(self) -> Better:
        """Which run is better, at 0.05 after the adjustment."""
        if self.adjusted > LEVEL:
            return "undecided"
        return "A better" if self.difference.value > 0 else "B better"

    @property
    def holds_for(self) -> str:
        """What the verdict applies to: other tasks like these, or other initial states of these tasks only."""
        if self.tasks >= FEW:
            return "tasks like these"
        if self.tasks == 0:
            return "these trials"
        return "this task" if self.tasks == 1 else f"these {self.tasks} tasks"

    @property
    def words(self) -> str:
        """The verdict for people: with its scope where it is about these tasks only, or why it is undecided."""
        if self.verdict != "undecided":
            return self.verdict if self.tasks >= FEW else f"{self.verdict} on {self.holds_for}"
        if self.paired and self.only_a + self.only_b < 6:
            differ = self.only_a + self.only_b
            few = ("no episode differs", "only 1 episode differs")
            found = few[differ] if differ < len(few) else f"only {differ} episodes differ"
            return f"undecided ({found}; at least 6 are needed to decide)"
        if self.uneven:
            return f"undecided (episodes differ, but the {self.tasks} tasks disagree)"
        return (
            "undecided (significant alone, but not after the adjustment)" if self.p <= LEVEL else "undecided"
        )


def join(a: pd.DataFrame, b: pd.DataFrame, on: Sequence[str] = KEY) -> pd.DataFrame:
    """Match the finished episodes of two frames.

    Imported episodes never match, because their numbers count episodes and do not identify initial states.

    Args:
        a: Episodes of A (`episode_frame`).
        b: Episodes of B.
        on: Columns that matched episodes have in common.

    Returns:
        One row per pair: the columns `on`, `instruction` (of A), and success as `a` and `b`.
    """
    text = {n: str for n in on if n not in ("init", "seed")}
    first, second = (
        f.loc[f.finished & ~f.imported, [*on, "success", "instruction"]].astype(text) for f in (a, b)
    )
    pairs = first.merge(second.drop(columns="instruction"), on=list(on), suffixes=("_a", "_b"))
    return pairs.rename(columns={"success_a": "a", "success_b": "b"})


def paired_contrast(name: str, pairs: pd.DataFrame) -> Contrast:
    """The contrast of the pairs that `join` gives: mean over cells of the mean over tasks."""
    cells = [c for c in ("suite", "cell") if c in pairs]
    of_task, of_cell = _numbers(pairs, [*cells, "task"]), _numbers(pairs, cells)
    weights = stats.macro_weights(of_task, of_cell)
    a, b = pairs.a.to_numpy(float), pairs.b.to_numpy(float)
    found = paired(a, b, _numbers(pairs, [*cells, "task", "instruction"]), weights)
    return _contrast(
        name, (len(pairs), len(pairs)), (min(1.0, float(weights @ a)), min(1.0, float(weights @ b))), found, True,
        only_a=int((pairs.a & ~pairs.b).sum()), only_b=int((~pairs.a & pairs.b).sum()),
    )  # fmt: skip


def _numbers(pairs: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """The number of each row's group; one group where there are no columns."""
    if not columns:
        return np.zeros(len(pairs), dtype=int)
    return np.asarray(pairs.groupby(list(columns), observed=True).ngroup())


def unpaired_contrast(
    name: str, cells: Sequence[tuple[pd.DataFrame, pd.DataFrame]]
) -> tuple[Contrast, tuple[int, int]]:
    """The contrast of two runs without common episodes, as independent samples.

    If both runs have tasks of a cell in common, only the episodes of these tasks count.

    Args:
        name: Name of the contrast.
        cells: For each cell the finished episodes of A and of B, neither empty.

    Returns:
        The contrast, and the numbers of episodes of A and of B that were left out.
    """
    counts, parts, weights, left = [], [], [], np.zeros(2, dtype=int)
    shared = True
    for pair in cells:
        common = _shared_tasks(*pair)
        a, b = (f[f.task.astype(str).isin(common)] if common else f for f in pair)
        left += [len(pair[0]) - len(a), len(pair[1]) - len(b)]
        counts.append((int(a.success.sum()), len(a), int(b.success.sum()), len(b)))
        shared &= bool(common)
        for task in sorted(common):
            x, y = a[a.task == task], b[b.task == task]
            parts.append((x.success.sum() / len(a) - y.success.sum() / len(b)) / len(cells))
            weights.append((len(x) / len(a) + len(y) / len(b)) / 2 / len(cells))
    found = unpaired(counts, parts, weights) if shared else unpaired(counts)
    n = (sum(c[1] for c in counts), sum(c[3] for c in counts))
    rates = (
        float(np.mean([k / m for k, m, _, _ in counts])),
        float(np.mean([k / m for _, _, k, m in counts])),
    )
    return _contrast(name, n, rates, found, False), (int(left[0]), int(left[1]))


def _shared_tasks(a: pd.DataFrame, b: pd.DataFrame) -> set[str]:
    """Tasks that both sides have. The tasks of an imported file are numbers, so they equal no suite's tasks."""
    if a.imported.any() != b.imported.any():
        return set()
    return set(a.task.astype(str)) & set(b.task.astype(str))


def _contrast(
    name: str, n: tuple[int, int], rates: tuple[float, float], found: Difference, matched: bool, **rest: Any
) -> Contrast:
    return Contrast(
        name, *n, *rates, found.estimate, found.p, matched, tasks=found.tasks, uneven=found.uneven,
        adjusted=found.p, **rest,
    )  # fmt: skip


def adjusted(contrasts: Sequence[Contrast], method: Any) -> tuple[Contrast, ...]:
    """The contrasts with p-values adjusted by `method`: `stats.holm` or `stats.benjamini_hochberg`."""
    found = method([c.p for c in contrasts])
    return tuple(dataclasses.replace(c, adjusted=p) for c, p in zip(contrasts, found, strict=True))
