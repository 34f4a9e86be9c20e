"""The difference of two policies: one estimate, with an interval and a p-value that always agree.

Every comparison tests the difference twice: over the **episodes** (would other initial states of these tasks show it?)
and over the **tasks** (would other tasks like these show it?). The p-value is the larger of the two, and the interval
covers both intervals, so that it excludes 0 exactly where p is at most 1 - level. docs/statistics.md gives the reasons
and the error rates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from apt_bench.analysis import stats
from apt_bench.analysis.stats import Estimate, Interval

FEW = 6
"""Fewer tasks cannot reach 0.05 over tasks: 5 effects all have the same sign by chance in 1 of 16 cases."""

EXACT, DRAWS = 14, 20_000
"""Up to `EXACT` tasks, every pattern of signs is used; for more tasks, `DRAWS` random patterns."""

_ROUNDING = 1e-9


class Difference(NamedTuple):
    """The difference A - B.

    Attributes:
        estimate: The difference and its interval, fractions.
        p: The p-value.
        tasks: Number of tasks that it rests on; 0 where the two sides have no task in common.
        uneven: The episodes alone would decide, but the tasks disagree.
    """

    estimate: Estimate
    p: float
    tasks: int
    uneven: bool


def paired(
    a: ArrayLike, b: ArrayLike, tasks: ArrayLike, weights: ArrayLike | None = None, level: float = 0.95
) -> Difference:
    """The difference a - b of matched episodes.

    Over the episodes it uses the exact McNemar test and Tango's score interval, with Kish's effective number of pairs
    where the weights differ.

    Args:
        a: (n,) success of A, 0 or 1.
        b: (n,) success of B; the same index is the same episode.
        tasks: (n,) any integer labels.
        weights: (n,) weights of the mean with sum 1; equal by default.
        level: Level of the interval.

    Returns:
        The difference; without any episode, nan with the whole range.
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

    Over the episodes it uses Newcombe's interval, which MOVER combines over several cells, and the p-value of that
    interval; in a single cell, p is at least Fisher's.

    Args:
        cells: Successes and episodes of A and of B in each cell.
        parts: What each task that both sides have adds to the difference; () = no statement over tasks.
        weights: Share of each of these tasks.
        level: Level of the interval.
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

    Null hypothesis: a task's effect is as likely to be d above the mean effect as d below it. Then every pattern of
    signs is as likely as the observed one (Fisher, The Design of Experiments 1935, section 21). The pattern that flips
    the tasks N and keeps the tasks P does not reject a difference x exactly where x is between the mean of N and the
    mean of P. So the limits are order statistics of such means (Hartigan's typical values, JASA 1969;64:1303), and p
    and interval agree by construction.

    With fewer than `FEW` tasks no pattern is rare enough for the level. Then 0 is rejected (p = 0) only where all tasks
    have the same sign. A single task always gives p = 0: it adds no evidence to that of its episodes.

    Args:
        parts: (k,) what each task adds to the difference.
        weights: (k,) share of each task, with sum 1.
        level: Level of the interval.

    Returns:
        The p-value and the interval.
    """
    d, w = np.asarray(parts, dtype=float), np.asarray(weights, dtype=float)
    total = float(d.sum())
    if len(d) == 1:
        return 0.0, Interval(total, total)
    lows, highs = _typical_values(d, w)
    least = 1 if len(d) < FEW else 0  # the observed pattern, which every set of patterns contains
    cut = max(least, int((1 - level) * len(lows) + _ROUNDING))
    among = int(((lows <= _ROUNDING) & (highs >= -_ROUNDING)).sum())
    p = 0.0 if among <= least else among / len(lows)
    low, high = (float(np.sort(x)[cut]) for x in (lows, -highs))
    return p, Interval(min(low, total), max(-high, total))


def _typical_values(d: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smaller and larger mean of the flipped and the kept tasks of each pattern; the whole range where one is empty."""
    k, total, whole = len(d), d.sum(), w.sum()
    if k <= EXACT:
        patterns = (np.arange(2 ** (k - 1))[:, None] >> np.arange(k)) & 1 == 1
        blocks = [patterns]
    else:
        rng, rows = np.random.default_rng(0), max(1, 2_000_000 // k)
        sizes = [min(rows, DRAWS - start) for start in range(0, DRAWS, rows)]
        blocks = [rng.random((size, k)) < 0.5 for size in sizes]
        blocks[0][0] = False  # the observed pattern is one of them
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
    """The larger p-value, and the interval that covers both intervals."""
    value = min(1.0, max(-1.0, float(parts.sum())))
    low, high = (min(1.0, max(-1.0, x)) if abs(x) > _ROUNDING else 0.0 for x in over_tasks[1])
    estimate = Estimate(value, min(interval.low, low, value), max(interval.high, high, value))
    both = max(p, over_tasks[0])
    return Difference(estimate, both, len(parts), p <= 1 - level + _ROUNDING < both)


def _with_zero(interval: Interval, p: float, level: float) -> Interval:
    """A score interval, extended to 0 where the exact test, which is more conservative, does not reject 0."""
    if p <= 1 - level:
        return interval
    return Interval(min(interval.low, 0.0), max(interval.high, 0.0))


def _mean_newcombe(cells: Sequence[tuple[int, int, int, int]], level: float) -> Interval:
    """Newcombe's interval of a mean of independent differences: the squared distances to the limits add up (MOVER: Zou
    and Donner, Stat Med 2008;27:1693)."""
    limits = np.array([stats.newcombe(*c, level) for c in cells])
    value = np.array([k1 / n1 - k2 / n2 for k1, n1, k2, n2 in cells])
    mean, count = value.mean(), len(cells)
    low = mean - np.sqrt(((value - limits[:, 0]) ** 2).sum()) / count
    high = mean + np.sqrt(((limits[:, 1] - value) ** 2).sum()) / count
    return Interval(float(low), float(high))


def _inverted(value: float, interval: Callable[[float], Interval]) -> float:
    """The p-value of an interval: 1 - the level at which it just reaches 0."""
    if value == 0:
        return 1.0

    def end(z: float) -> float:
        low, high = interval(float(2 * special.ndtr(z) - 1))
        return low if value > 0 else -high

    most = 7.0  # for a larger z the level is 1 in floating point
    z = most if end(most) > 0 else float(optimize.brentq(end, 1e-9, most))
    return float(2 * special.ndtr(-z))
