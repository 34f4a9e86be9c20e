"""Intervals, tests, adjustments and power for success rates.

Rates are fractions in [0, 1]. Samples may be empty everywhere: the interval is then the whole range, and p = 1.
docs/statistics.md describes which method the reports use where, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from apt_bench.core.errors import UserError

Alternative = Literal["two-sided", "less", "greater"]


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A value and its confidence interval."""

    value: float
    low: float
    high: float


def normal_quantile(level: float) -> float:
    """The standard normal quantile z of a central interval of this level."""
    if not 0 < level < 1:
        raise ValueError(f"confidence level must be between 0 and 1, not {level}")
    return float(special.ndtri(0.5 + level / 2))


# --- one proportion ---------------------------------------------------------------------------------------------------


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Wilson's score interval (JASA 1927). Real counts are allowed, for weighted means with an effective `n`."""
    if n <= 0:
        return Interval(0.0, 1.0)
    z, p = normal_quantile(level), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes <= 0 else max(0.0, float(centre - half))  # exact ends, without rounding residue
    high = 1.0 if successes >= n else min(1.0, float(centre + half))
    return Interval(low, high)


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """The exact (conservative) interval of Clopper and Pearson, Biometrika 1934."""
    if n <= 0:
        return Interval(0.0, 1.0)
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(special.betainccinv(successes + 1, n - successes, tail))
    return Interval(low, high)


def jeffreys(successes: int, n: int, level: float = 0.95) -> Interval:
    """Equal-tailed posterior interval under Jeffreys' prior; it ends at 0 for 0 successes and at 1 for n (Brown, Cai
    and DasGupta, Statistical Science 2001)."""
    tail = (1 - level) / 2
    a, b = successes + 0.5, n - successes + 0.5
    low = 0.0 if successes == 0 else float(special.betaincinv(a, b, tail))
    high = 1.0 if successes == n else float(special.betainccinv(a, b, tail))
    return Interval(low, high)


# --- two proportions --------------------------------------------------------------------------------------------------


def newcombe(k1: float, n1: float, k2: float, n2: float, level: float = 0.95) -> Interval:
    """Interval of p1 - p2 for independent samples: Newcombe's hybrid score method (Stat Med 1998;17:873, method 10)."""
    if n1 <= 0 or n2 <= 0:
        return Interval(-1.0, 1.0)
    p1, p2 = k1 / n1, k2 / n2
    (l1, u1), (l2, u2) = wilson(k1, n1, level), wilson(k2, n2, level)
    low = p1 - p2 - np.hypot(p1 - l1, u2 - p2)
    high = p1 - p2 + np.hypot(u1 - p1, p2 - l2)
    return Interval(max(-1.0, float(low)), min(1.0, float(high)))


def newcombe_paired(
    both: float, only_a: float, only_b: float, neither: float, level: float = 0.95
) -> Interval:
    """Interval of p_a - p_b for matched pairs: Newcombe's method 10 (Stat Med 1998;17:2635), with its continuity
    correction of phi. The counts are pairs in which both, only a, only b and neither succeeded."""
    n = both + only_a + only_b + neither
    if n <= 0:
        return Interval(-1.0, 1.0)
    row, column = both + only_a, both + only_b
    pa, pb = row / n, column / n
    (la, ua), (lb, ub) = wilson(row, n, level), wilson(column, n, level)
    margins = row * (n - row) * column * (n - column)
    phi = 0.0
    if margins > 0:
        cross = both * neither - only_a * only_b
        phi = (max(cross - n / 2, 0.0) if cross > 0 else cross) / np.sqrt(margins)
    below, above = (pa - la, ub - pb), (ua - pa, pb - lb)
    low = pa - pb - np.sqrt(max(0.0, below[0] ** 2 - 2 * phi * below[0] * below[1] + below[1] ** 2))
    high = pa - pb + np.sqrt(max(0.0, above[0] ** 2 - 2 * phi * above[0] * above[1] + above[1] ** 2))
    return Interval(max(-1.0, float(low)), min(1.0, float(high)))


def tango(pairs: float, only_a: float, only_b: float, level: float = 0.95) -> Interval:
    """Score interval of p_a - p_b for matched pairs (Tango, Stat Med 1998;17:891).

    It contains the differences that a score test with the restricted variance does not reject. It keeps its error rate
    where few pairs differ, which a non-inferiority test needs. Real counts are allowed, for weighted means with an
    effective number of pairs.
    """
    if pairs <= 0:
        return Interval(-1.0, 1.0)
    z = normal_quantile(level)
    low = (
        -1.0
        if only_b >= pairs
        else optimize.brentq(lambda d: tango_score(d, pairs, only_a, only_b) - z, -1.0, 1.0)
    )
    high = (
        1.0
        if only_a >= pairs
        else optimize.brentq(lambda d: tango_score(d, pairs, only_a, only_b) + z, -1.0, 1.0)
    )
    return Interval(float(low), float(high))


def tango_score(d: float, n: float, a: ArrayLike, b: ArrayLike) -> Any:
    """Tango's score statistic of the difference d. It decreases from +inf to -inf with d.

    Args:
        d: The difference p_a - p_b.
        n: Number of pairs.
        a: Pairs in which only a succeeded; any shape.
        b: Pairs in which only b succeeded; the same shape.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    linear, constant = (2 * n - a + b) * d - a - b, -b * d * (1 - d)
    q = (np.sqrt(np.maximum(0.0, linear * linear - 8 * n * constant)) - linear) / (
        4 * n
    )  # estimate of P(only b)
    variance = n * (2 * q + d * (1 - d))
    excess = a - b - n * d
    safe = np.where(variance > 1e-12, variance, 1.0)
    return np.where(variance > 1e-12, excess / np.sqrt(safe), np.sign(excess) * 1e9)[()]


def mcnemar(only_a: float, only_b: float, alternative: Alternative = "two-sided") -> float:
    """Exact McNemar p-value: the binomial test of the discordant pairs against 1/2. `less`: a is worse than b.

    A two-sided test with fewer than 6 discordant pairs never reaches 0.05. Real counts are allowed: the binomial tail
    is an incomplete beta function (Abramowitz and Stegun 26.5.24), which is also defined between whole numbers.
    """
    if alternative == "less":
        return _half_tail(only_b, only_a)
    if alternative == "greater":
        return _half_tail(only_a, only_b)
    return min(1.0, 2 * _half_tail(max(only_a, only_b), min(only_a, only_b)))


def _half_tail(k: float, rest: float) -> float:
    """P(X >= k), where X counts the heads of k + rest tosses of a fair coin."""
    return 1.0 if k <= 0 else float(special.betainc(k, rest + 1, 0.5))


def fisher(k1: int, n1: int, k2: int, n2: int) -> float:
    """Fisher's exact two-sided p-value for two independent samples."""
    if n1 == 0 or n2 == 0:
        return 1.0
    from scipy import stats as sps  # takes half a second to import

    return float(sps.fisher_exact([[k1, n1 - k1], [k2, n2 - k2]]).pvalue)


# --- many tests -------------------------------------------------------------------------------------------------------


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (family-wise error; Scand J Stat 1979), for contrasts that are declared in advance."""
    p = np.asarray(pvalues, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(x) for x in adjusted]


def benjamini_hochberg(pvalues: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p-values (false discovery rate), to explore many tasks."""
    from scipy import stats as sps

    return [float(p) for p in sps.false_discovery_control(pvalues)] if len(pvalues) else []


# --- clustered by task ------------------------------------------------------------------------------------------------


def macro_mean(
    success: Sequence[float] | np.ndarray,
    tasks: Sequence[int] | np.ndarray,
    cells: Sequence[int] | np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Estimate:
    """Mean over cells of the mean over tasks of the mean over episodes, with a task-clustered percentile bootstrap.

    Each resample draws tasks within their cell, then episodes within each drawn task, both with replacement. Where the
    sample does not vary, a bootstrap interval has width 0 (for example 0 of 50). So the result is never narrower than
    Wilson's interval at the effective number of episodes, which ignores the tasks.

    Args:
        success: (n,) values in [0, 1].
        tasks: (n,) any integer labels.
        cells: (n,) any integer labels; None = one cell.
        level: Level of the interval.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        The mean and its interval; without any episode, nan with the whole range.
    """
    value = np.asarray(success, dtype=float)
    if len(value) == 0:
        return Estimate(float("nan"), 0.0, 1.0)
    weights = macro_weights(tasks, cells)
    draws, freedom = _bootstrap(value, tasks, cells, resamples, seed)
    mean, n = float(weights @ value), _effective(weights)
    return _estimate(mean, draws, freedom, wilson(min(n, mean * n), n, level), level)


def macro_weights(tasks: ArrayLike, cells: ArrayLike | None = None) -> np.ndarray:
    """The weight of each episode in the mean over cells of the mean over tasks. The weights sum to 1.

    Args:
        tasks: (n,) any integer labels; a task belongs to one cell.
        cells: (n,) any integer labels; None = one cell.
    """
    group = np.asarray(tasks)
    cell = np.zeros(len(group), dtype=int) if cells is None else np.asarray(cells)
    weights, names = np.empty(len(group)), np.unique(cell)
    for name in names:
        inside = np.flatnonzero(cell == name)
        labels, index = np.unique(group[inside], return_inverse=True)
        weights[inside] = 1 / (len(names) * len(labels) * np.bincount(index)[index])
    return weights


def _effective(weights: np.ndarray) -> float:
    return 1 / float(weights @ weights)  # Kish's effective sample size: n where all weights are equal


def _estimate(mean: float, draws: np.ndarray, freedom: int, floor: Interval, level: float) -> Estimate:
    tail = (1 - level) / 2
    if (
        freedom
    ):  # with few tasks the coverage is too small without Student's t (Hesterberg, Am Stat 2015;69:371)
        tail = float(special.ndtr(special.stdtrit(freedom, tail)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(mean, min(float(low), floor.low, mean), max(float(high), floor.high, mean))


def _bootstrap(
    value: np.ndarray,
    tasks: Sequence[int] | np.ndarray,
    cells: Sequence[int] | np.ndarray | None,
    resamples: int,
    seed: int,
) -> tuple[np.ndarray, int]:
    """`resamples` bootstrap macro means, and the degrees of freedom between tasks.

    To draw n episodes with replacement is one multinomial draw over the distinct values, which costs nothing per
    episode.
    """
    group = np.asarray(tasks)
    cell = np.zeros(len(value), dtype=int) if cells is None else np.asarray(cells)
    rng = np.random.default_rng(seed)
    draws, freedom = np.zeros(resamples), 0
    names = np.unique(cell)
    for name in names:
        inside = np.flatnonzero(cell == name)
        labels, index = np.unique(group[inside], return_inverse=True)
        sizes = np.bincount(index)
        freedom += len(labels) - 1
        picked = rng.integers(len(labels), size=(resamples, len(labels)))
        means = np.empty(picked.shape)
        for t in range(len(labels)):
            levels, counts = np.unique(value[inside[index == t]], return_counts=True)
            here = picked == t
            drawn = rng.multinomial(sizes[t], counts / sizes[t], size=int(here.sum()))
            means[here] = drawn @ levels / sizes[t]
        draws += means.mean(axis=1) / len(names)
    return draws, freedom


# --- power ------------------------------------------------------------------------------------------------------------


MOST = 10**9
"""Most pairs for which a power is computed."""


def mcnemar_critical(discordant: np.ndarray, alpha: float) -> np.ndarray:
    """Largest count of the rarer side that the exact two-sided test rejects, per number of discordant pairs; -1 where
    it rejects none."""
    from scipy import stats as sps

    c = sps.binom.ppf(alpha / 2, discordant, 0.5)
    c = np.where(sps.binom.cdf(c, discordant, 0.5) > alpha / 2, c - 1, c)
    return np.where(discordant == 0, -1, c)


def paired_power(pairs: int, difference: float, discordance: float, alpha: float = 0.05) -> float:
    """Exact power of the two-sided exact McNemar test.

    Args:
        pairs: Number of matched episodes.
        difference: True difference p_a - p_b.
        discordance: Share of pairs in which only one side succeeds.
        alpha: Size of the test.
    """
    if not abs(difference) <= discordance <= 1:
        raise ValueError("discordance must be between |difference| and 1")
    if discordance == 0:
        return 0.0
    from scipy import stats as sps

    low, high = sps.binom.interval(1 - 1e-12, pairs, discordance)  # the rest is below rounding error
    d = np.arange(int(low), int(high) + 1)
    c = mcnemar_critical(d, alpha)
    p = (1 + difference / discordance) / 2
    reject = sps.binom.cdf(c, d, p) + sps.binom.sf(d - c - 1, d, p)
    return float(sps.binom.pmf(d, pairs, discordance) @ np.where(c < 0, 0.0, reject))


def paired_sample_size(difference: float, discordance: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Smallest number of pairs from which on the exact McNemar test has at least this power.

    The search starts at Connor's formula (Biometrics 1987); the exact test needs slightly more pairs.

    Args:
        difference: True difference p_a - p_b, not 0.
        discordance: Share of pairs in which only one side succeeds.
        power: The power.
        alpha: Size of the test.

    Raises:
        UserError: More than `MOST` pairs are needed.
    """
    if difference == 0:
        raise ValueError("a difference of 0 can never be detected")
    za, zb = normal_quantile(1 - alpha), float(special.ndtri(power))
    root = za * np.sqrt(discordance) + zb * np.sqrt(discordance - difference**2)
    n = max(6, int(np.ceil(min((root / difference) ** 2, 2.0 * MOST))))
    if n > MOST:
        raise UserError(f"More than {MOST:,} pairs would be needed. Ask about a larger difference.")
    # The exact power is not monotonic: it rises in small saw teeth. So the next five sizes must all have it.
    while min(paired_power(m, difference, discordance, alpha) for m in range(n, n + 5)) < power:
        n += max(1, n // 200)
    return n


def unpaired_sample_size(p1: float, p2: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Episodes per policy for the two-sided comparison of independent proportions, not rounded up: the formula of R's
    `power.prop.test`."""
    if p1 == p2:
        raise ValueError("a difference of 0 can never be detected")
    za, zb, mean = normal_quantile(1 - alpha), float(special.ndtri(power)), (p1 + p2) / 2
    root = za * np.sqrt(2 * mean * (1 - mean)) + zb * np.sqrt(p1 * (1 - p1) + p2 * (1 - p2))
    return float((root / (p1 - p2)) ** 2)


def unpaired_power(n: int, p1: float, p2: float, alpha: float = 0.05) -> float:
    """Power with `n` episodes per policy: the inverse of `unpaired_sample_size`."""
    mean = (p1 + p2) / 2
    spread = np.sqrt(p1 * (1 - p1) + p2 * (1 - p2))
    if spread == 0:
        return 1.0 if p1 != p2 else 0.0
    shift = np.sqrt(n) * abs(p1 - p2) - normal_quantile(1 - alpha) * np.sqrt(2 * mean * (1 - mean))
    return float(special.ndtr(shift / spread))
