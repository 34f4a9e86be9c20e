"""Group-sequential tests of matched pairs, for interim looks at a growing comparison.

The maximum number of pairs is declared in advance, and the error is spent over the looks. Pairs are pooled, so the test
is about other initial states of the same tasks. `differences` is about other tasks too, without interim looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats as sps

from apt_bench.analysis.stats import normal_quantile, tango_score


class Look(NamedTuple):
    """One interim look at a growing set of matched pairs: the counts at that time."""

    pairs: int
    only_a: int
    only_b: int


class Decision(NamedTuple):
    """The state of a sequential comparison.

    Attributes:
        verdict: The decision.
        final: The comparison is over: it is decided, or the declared maximum is reached.
        critical: The excess |only_a - only_b| that decides at this look.
        p: The p-value, valid when the comparison is over. It does not apply to `equivalent`.
    """

    verdict: Literal["a better", "b better", "equivalent", "undecided"]
    final: bool
    critical: float
    p: float


def spent(time: float, alpha: float = 0.05) -> float:
    """Error that may be spent up to a share `time` of the maximum: Lan and DeMets' O'Brien-Fleming-like function
    2(1 - Phi(z / sqrt(t))) (Biometrika 1983)."""
    return float(2 * sps.norm.sf(normal_quantile(1 - alpha) / np.sqrt(time))) if time > 0 else 0.0


def sequential_mcnemar(
    looks: Sequence[Look], maximum: int, alpha: float = 0.05, margin: float | None = None
) -> Decision:
    """Group-sequential exact McNemar test with a declared maximum number of pairs.

    `spent` gives the two-sided error of each look. Given the discordant counts, the excess only_a - only_b is a fair
    random walk under the null, so the boundary of each look follows exactly from convolutions. The error over all looks
    is at most `alpha` for any looks, provided that neither their times nor the maximum depend on which side is ahead.
    `p` orders outcomes by the look that ends the comparison, then by excess (Fairbanks and Madsen, Biometrika 1982).

    Args:
        looks: The looks so far, with growing counts.
        maximum: The declared maximum number of pairs.
        alpha: Two-sided error over all looks.
        margin: A fraction. The test also ends, as `equivalent`, where Tango's score statistic rejects differences of
            +margin and of -margin at the look's one-sided level. By normal theory, each is wrong with probability
            `alpha` over all looks. The error of the other verdicts does not change, because this rule only ends
            comparisons that would otherwise continue.

    Raises:
        ValueError: The counts are impossible, or exceed the maximum.
    """
    if maximum < 1:
        raise ValueError("the declared maximum must be at least 1 pair")
    walk = np.array([1.0])  # null distribution of the excess on -d, -d + 2, ..., d, of walks not stopped yet
    used, before, critical, p = 0.0, Look(0, 0, 0), float("inf"), 1.0
    shares = tuple(look.pairs / maximum for look in looks)
    levels = () if margin is None else sequential_levels(shares, alpha)
    for number, look in enumerate(looks):
        step = (look.pairs - before.pairs, look.only_a - before.only_a, look.only_b - before.only_b)
        if min(step) < 0 or step[1] + step[2] > step[0]:
            raise ValueError(f"counts must grow from look to look and fit their pairs: {before}, {look}")
        if look.pairs > maximum:
            raise ValueError(f"{look.pairs} pairs exceed the declared maximum {maximum}")
        d, found = look.only_a + look.only_b, abs(look.only_a - look.only_b)
        walk = np.convolve(walk, sps.binom.pmf(np.arange(step[1] + step[2] + 1), step[1] + step[2], 0.5))
        excess = np.abs(np.arange(-d, d + 1, 2))
        budget = spent(look.pairs / maximum, alpha) - used
        sizes = np.unique(excess)[::-1]
        tail = np.cumsum([walk[excess == size].sum() for size in sizes])
        inside = sizes[tail <= budget + 1e-12]
        critical = float(inside[-1]) if len(inside) and inside[-1] > 0 else float("inf")
        p = min(1.0, used + float(walk[excess >= found].sum()))
        if found >= critical:
            return Decision("a better" if look.only_a > look.only_b else "b better", True, critical, p)
        if margin is not None and look.pairs:
            least = min(tango_score(-margin, *look), -tango_score(margin, *look))
            if least >= levels[number]:
                return Decision("equivalent", True, critical, p)
        stopped = excess >= critical
        used += float(walk[stopped].sum())
        walk = np.where(stopped, 0.0, walk)
        before = look
    return Decision("undecided", before.pairs >= maximum, critical, p)


@cache
def sequential_levels(times: tuple[float, ...], alpha: float = 0.05) -> tuple[float, ...]:
    """One-sided critical values of a standard normal score at growing shares of the maximum, with the error of `spent`:
    Brownian motion on a grid, look by look (Armitage, McPherson and Rowe, JRSS A 1969)."""
    grid, step = np.linspace(-8.0, 8.0, 1601, retstep=True)  # values of the motion; its variance is the time
    density = np.zeros_like(grid)  # of the paths that have not stopped yet
    levels: list[float] = []
    before = 0.0
    for time in times:
        wide = np.sqrt(time - before) if time > before else 0.0
        if wide == 0.0:
            levels.append(float("inf"))
            continue
        if before == 0.0:
            density = sps.norm.pdf(grid, scale=wide)
        else:
            moves = np.exp(-0.5 * ((grid[:, None] - grid) / wide) ** 2) / np.sqrt(2 * np.pi)
            density = moves @ density * (step / wide)
        tail = np.cumsum(density[::-1])[::-1] * step - density * (step / 2)  # beyond each grid point
        budget = spent(time, alpha) - spent(before, alpha)
        edge = float(np.interp(-budget, -tail, grid))
        levels.append(edge / float(np.sqrt(time)))
        density = np.where(grid < edge, density, 0.0)
        before = time
    return tuple(levels)
