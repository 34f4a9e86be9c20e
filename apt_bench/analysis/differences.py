"""The difference of two policies: one estimate, one interval and one p-value that cannot contradict each other.

Every comparison asks two questions, and decides only where both answers are clear. Over the **episodes**: would other
initial states of these tasks show it too? Over the **tasks**: would other tasks like these? The p-value is the larger
of the two, the interval covers both intervals, so that it excludes 0 exactly where p is at most 1 - level.
docs/statistics.md says why, and how often it errs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy import stats as sps

from apt_bench.analysis import stats
from apt_bench.analysis.stats import Estimate, Interval

FEW = 6
"""Fewer tasks than this cannot show anything over tasks at 0.05: of 5, all point one way by chance in 1 of 16 cases."""

EXACT, DRAWS = 14, 20_000
"""Up to so many tasks every pattern of signs is tried, beyond it so many patterns are drawn."""

_ROUNDING = 1e-9


class Difference(NamedTuple):
    """A minus B, and what is known of it. `tasks`: how many groups of episodes it rests on; 0 where the two sides have
    none in common. `uneven`: the episodes alone would decide, but the tasks do not agree."""

    estimate: Estimate
    p: float
    tasks: int
    uneven: bool


def paired(
    a: ArrayLike, b: ArrayLike, tasks: ArrayLike, weights: ArrayLike | None = None, level: float = 0.95
) -> Difference:
    """The difference a - b of matched episodes.

    a, b (n,): 0 or 1, the same episode at the same index. tasks (n,): any integer labels. weights (n,): of the mean,
    their sum is 1; all alike by default. Over the episodes: exact McNemar test and Tango's score interval, at Kish's
    effective number of pairs where weights differ. Empty: nan with the whole range.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n = len(first)
    if n == 0:
        return Difference(Estimate(float("nan"), -1.0, 1.0), 1.0, 0, False)
    share = np.full(n, 1 / n) if weights is None else np.asarray(weights, dtype=float)
    pairs = 1 / float(share @ share)
    pairs, only_a, only_b = (
        round(x, 9)
        for x in (pairs, pairs * (share @ (first * (1 - second))), pairs * (share @ ((1 - first) * second)))
    )
    p = stats.mcnemar(only_a, only_b)
    interval = _with_zero(stats.tango(pairs, only_a, only_b, level), p, level)
    _, group = np.unique(np.asarray(tasks), return_inverse=True)
    parts = np.bincount(group, share * (first - second))
    return _both(p, interval, sign_flips(parts, np.bincount(group, share), level), parts, level)


def unpaired(
    cells: Sequence[tuple[int, int, int, int]],
    parts: ArrayLike = (),
    weights: ArrayLike = (),
    level: float = 0.95,
) -> Difference:
    """The mean over cells of the difference of independent samples, each (k1, n1, k2, n2).

    Over the episodes: Newcombe's interval, in several cells combined by squares (MOVER), and the p-value that belongs
    to it; in one cell not below Fisher's. parts, weights: what each task that both sides have adds to the difference
    and its share of it; none: nothing is said over tasks.
    """
    mean = float(np.mean([k1 / n1 - k2 / n2 for k1, n1, k2, n2 in cells]))
    p = _inverted(mean, lambda at: _mean_newcombe(cells, at))
    if len(cells) == 1:
        p = max(p, stats.fisher(*cells[0]))
    interval = _with_zero(_mean_newcombe(cells, level), p, level)
    share = np.asarray(parts, dtype=float)
    if len(share) == 0:
        return Difference(Estimate(mean, *interval), p, 0, False)
    return _both(p, interval, sign_flips(share, weights, level), share, level)


def sign_flips(parts: ArrayLike, weights: ArrayLike, level: float = 0.95) -> tuple[float, Interval]:
    """P-value of no difference over tasks, and the interval of the difference, from flipping the signs of tasks.

    parts (k,): what each task adds to the difference D; weights (k,): its share, their sum is 1. The null: a task's
    effect is as likely d above the mean effect as d below. Then every pattern of signs is as likely as the one seen
    (Fisher, The Design of Experiments 1935, section 21). A difference x is not rejected by the pattern that turns
    round the tasks N and keeps P exactly where x lies between the mean of N and the mean of P; so the limits are order
    statistics of such means (Hartigan's typical values, JASA 1969;64:1303), and p and interval agree by construction.

    With fewer than 6 tasks no pattern is rare enough. Then the level is the best that they allow: 0 is rejected (p = 0:
    the tasks do not object) only where all of them point the same way. A single task never objects.
    """
    d, w = np.asarray(parts, dtype=float), np.asarray(weights, dtype=float)
    total = float(d.sum())
    if len(d) == 1:
        return 0.0, Interval(total, total)
    lows, highs = _typical_values(d, w)
    least = 1 if len(d) < FEW else 0  # the pattern seen, which every set of patterns has
    cut = max(least, int((1 - level) * len(lows) + _ROUNDING))
    among = int(((lows <= _ROUNDING) & (highs >= -_ROUNDING)).sum())
    p = 0.0 if among <= least else among / len(lows)
    low, high = (float(np.sort(x)[cut]) for x in (lows, -highs))
    return p, Interval(min(low, total), max(-high, total))


def _typical_values(d: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper mean of the two sides of each pattern of signs; the whole range where one side is empty."""
    k, total, whole = len(d), d.sum(), w.sum()
    if k <= EXACT:
        patterns = (np.arange(2 ** (k - 1))[:, None] >> np.arange(k)) & 1 == 1
        blocks = [patterns]
    else:
        rng, rows = np.random.default_rng(0), max(1, 2_000_000 // k)
        sizes = [min(rows, DRAWS - start) for start in range(0, DRAWS, rows)]
        blocks = [rng.random((size, k)) < 0.5 for size in sizes]
        blocks[0][0] = False  # the pattern seen belongs to them
    lows, highs = [], []
    for block in blocks:
        turned = block.any(axis=1) & ~block.all(axis=1)
        part, share = block @ d, block @ w
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.stack([part / share, (total - part) / (whole - share)])
        lows.append(np.where(turned, means.min(axis=0), -1.0))
        highs.append(np.where(turned, means.max(axis=0), 1.0))
    return np.clip(np.concatenate(lows), -1, 1), np.clip(np.concatenate(highs), -1, 1)


def _both(
    p: float, interval: Interval, over_tasks: tuple[float, Interval], parts: np.ndarray, level: float
) -> Difference:
    """The larger p, and the interval that covers both."""
    value = min(1.0, max(-1.0, float(parts.sum())))
    low, high = (min(1.0, max(-1.0, x)) if abs(x) > _ROUNDING else 0.0 for x in over_tasks[1])
    estimate = Estimate(value, min(interval.low, low, value), max(interval.high, high, value))
    both = max(p, over_tasks[0])
    return Difference(estimate, both, len(parts), p <= 1 - level + _ROUNDING < both)


def _with_zero(interval: Interval, p: float, level: float) -> Interval:
    """A score interval, and 0 with it unless the exact test rejects 0, which it does less readily."""
    if p <= 1 - level:
        return interval
    return Interval(min(interval.low, 0.0), max(interval.high, 0.0))


def _mean_newcombe(cells: Sequence[tuple[int, int, int, int]], level: float) -> Interval:
    """Newcombe's interval of a mean of independent differences: distances to the limits add in squares (MOVER: Zou and
    Donner, Stat Med 2008;27:1693)."""
    limits = np.array([stats.newcombe(*c, level) for c in cells])
    value = np.array([k1 / n1 - k2 / n2 for k1, n1, k2, n2 in cells])
    mean, count = value.mean(), len(cells)
    low = mean - np.sqrt(((value - limits[:, 0]) ** 2).sum()) / count
    high = mean + np.sqrt(((limits[:, 1] - value) ** 2).sum()) / count
    return Interval(float(low), float(high))


def _inverted(value: float, interval: Callable[[float], Interval]) -> float:
    """The p-value that belongs to an interval: 1 - the level at which it just reaches 0."""
    if value == 0:
        return 1.0

    def end(z: float) -> float:
        low, high = interval(float(2 * sps.norm.cdf(z) - 1))
        return low if value > 0 else -high

    most = 7.0  # beyond it levels are 1 in floating point
    z = most if end(most) > 0 else float(optimize.brentq(end, 1e-9, most))
    return float(2 * sps.norm.sf(z))
