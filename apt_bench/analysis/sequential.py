"""Looking at a growing comparison without fooling oneself: group-sequential tests of matched pairs.

The maximum is declared in advance, and the error is spent over the looks. All of it is about other initial states of
the same tasks: pairs are pooled, and nothing is said about other tasks (`differences` does that, and without looks).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats as sps

from apt_bench.analysis.stats import normal_quantile, tango_score


class Look(NamedTuple):
    """One interim look at a growing set of matched pairs: counts so far."""

    pairs: int
    only_a: int
    only_b: int


class Decision(NamedTuple):
    """Where a sequential comparison stands. `critical` = the excess |only_a - only_b| that would have decided; `p` is
    valid once the comparison is over, and not for `equivalent`, which answers another question."""

    verdict: Literal["a better", "b better", "equivalent", "undecided"]
    final: bool  # decided, or the declared maximum is reached
    critical: float
    p: float


def spent(time: float, alpha: float = 0.05) -> float:
    """Error that may be spent up to this share of the maximum: Lan and DeMets' O'Brien-Fleming-like
    2(1 - Phi(z / sqrt(t))) (Biometrika 1983)."""
    return float(2 * sps.norm.sf(normal_quantile(1 - alpha) / np.sqrt(time))) if time > 0 else 0.0


def sequential_mcnemar(
    looks: Sequence[Look], maximum: int, alpha: float = 0.05, margin: float | None = None
) -> Decision:
    """Group-sequential exact McNemar test with a declared maximum number of pairs.

    The two-sided error is spent as `spent` says. Given the discordant counts, the excess only_a - only_b is a fair
    random walk under the null, so the boundary of each look follows exactly from convolutions: the error over all looks
    is at most `alpha`, whatever the looks, provided that neither their times nor the maximum depend on who is ahead.
    `p` orders outcomes by the look that ends the comparison, then by excess (Fairbanks and Madsen, Biometrika 1982).

    margin: also ends, as `equivalent`, where Tango's score statistic rejects both a difference of +margin and one of
    -margin at the look's one-sided level; by normal theory each is wrong with probability `alpha` over all looks. It
    only ever ends what would have gone on, and so leaves the error of the other verdicts as it is.
    """
    if maximum < 1:
        raise ValueError("the declared maximum must be at least 1 pair")
    walk = np.array([1.0])  # null distribution of the excess on -d, -d + 2, ..., d, not stopped before
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
    """One-sided critical values of a standard normal score at these growing shares of the maximum, its error spent as
    `spent` says: Brownian motion on a grid, look by look (Armitage, McPherson and Rowe, JRSS A 1969)."""
    grid, step = np.linspace(-8.0, 8.0, 1601, retstep=True)  # of the motion, whose variance is the time
    density = np.zeros_like(grid)  # of what has not stopped before
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
