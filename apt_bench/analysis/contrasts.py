"""Two runs in a cell, in a task or over all cells: the one place that matches their episodes and says who is better.

`differences` has the statistics. Here are the units: a task is one sentence in a cell. Where a suite's task is only a
template (`to_plate`) and each initial state has its own sentence and scene, each sentence counts as a task.
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
    """A against B in one cell or task, or overall. Rates are fractions; `difference` is A - B with its 95% interval,
    which excludes 0 exactly where `p` is at most 0.05.

    Paired: `only_a` and `only_b` count the matched episodes in which only one of them succeeded, `n_a` = `n_b` = pairs.
    `tasks`, `uneven`: see `Difference`.
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
    adjusted: float = 1.0  # p after Holm (cells) or Benjamini-Hochberg (tasks)

    @property
    def verdict(self) -> Better:
        """Which is better, at 0.05 after the adjustment."""
        if self.adjusted > LEVEL:
            return "undecided"
        return "A better" if self.difference.value > 0 else "B better"

    @property
    def holds_for(self) -> str:
        """What the verdict is about: other tasks like these, or other initial states of these tasks only."""
        if self.tasks >= FEW:
            return "tasks like these"
        if self.tasks == 0:
            return "these trials"
        return "this task" if self.tasks == 1 else f"these {self.tasks} tasks"

    @property
    def words(self) -> str:
        """The verdict, what it is about where that is not tasks like these, and why nothing was decided."""
        if self.verdict != "undecided":
            return self.verdict if self.tasks >= FEW else f"{self.verdict} on {self.holds_for}"
        if self.paired and self.only_a + self.only_b < 6:
            differ = self.only_a + self.only_b
            return f"undecided (only {differ} episodes differ; 6 are the least that can decide)"
        if self.uneven:
            return f"undecided (episodes differ, but the {self.tasks} tasks do not agree)"
        return "undecided (decided alone, not among all rows)" if self.p <= LEVEL else "undecided"


def join(a: pd.DataFrame, b: pd.DataFrame, on: Sequence[str] = KEY) -> pd.DataFrame:
    """Finished episodes that both frames have: the columns `on`, the sentence (of A), and success as `a` and `b`.

    Imported episodes never match: their numbers count the order of playing, they are no initial states.
    """
    text = {n: str for n in on if n not in ("init", "seed")}
    first, second = (
        f.loc[f.done & ~f.imported, [*on, "success", "prompt_text"]].astype(text) for f in (a, b)
    )
    pairs = first.merge(second.drop(columns="prompt_text"), on=list(on), suffixes=("_a", "_b"))
    return pairs.rename(columns={"success_a": "a", "success_b": "b"})


def paired_contrast(name: str, pairs: pd.DataFrame) -> Contrast:
    """The contrast of matched episodes, as `join` gives them: mean over cells of the mean over tasks."""
    cells = [c for c in ("suite", "cell") if c in pairs]
    of_task, of_cell = _numbers(pairs, [*cells, "task"]), _numbers(pairs, cells)
    weights = stats.macro_weights(of_task, of_cell)
    a, b = pairs.a.to_numpy(float), pairs.b.to_numpy(float)
    found = paired(a, b, _numbers(pairs, [*cells, "task", "prompt_text"]), weights)
    return _contrast(
        name, (len(pairs), len(pairs)), (min(1.0, float(weights @ a)), min(1.0, float(weights @ b))), found, True,
        only_a=int((pairs.a & ~pairs.b).sum()), only_b=int((~pairs.a & pairs.b).sum()),
    )  # fmt: skip


def _numbers(pairs: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    if not columns:
        return np.zeros(len(pairs), dtype=int)
    return pairs.groupby(list(columns), observed=True).ngroup().to_numpy()


def unpaired_contrast(
    name: str, cells: Sequence[tuple[pd.DataFrame, pd.DataFrame]]
) -> tuple[Contrast, tuple[int, int]]:
    """The contrast of the finished episodes of both sides, cell by cell, none of them empty; and how many of A and of B
    were left out. Where the sides share tasks of a cell, only these count, and they speak for tasks like them."""
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
    """Tasks that both sides have. An imported file numbers its tasks, which are no names of this suite's."""
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
    """The same with p-values adjusted for their number: `method` is `stats.holm` or `stats.benjamini_hochberg`."""
    found = method([c.p for c in contrasts])
    return tuple(dataclasses.replace(c, adjusted=p) for c, p in zip(contrasts, found, strict=True))
