"""Statistics compared with published worked examples, with other implementations, and with simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sps
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from apt_bench.analysis import stats
from apt_bench.core.errors import UserError

counts = st.integers(0, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))

cells = st.integers(0, 60)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Newcombe 1998 (Stat Med 17:857), table I, method 3 (score, no continuity correction)
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_newcombes_table(k: int, n: int, low: float, high: float) -> None:
    assert stats.wilson(k, n) == pytest.approx((low, high), abs=6e-5)


@given(counts)
def test_one_proportion_intervals_equal_statsmodels(kn: tuple[int, int]) -> None:
    k, n = kn
    if n == 0:
        assert stats.wilson(k, n) == stats.clopper_pearson(k, n) == (0, 1)
        return
    assert stats.wilson(k, n) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-9)
    assert stats.clopper_pearson(k, n) == pytest.approx(proportion_confint(k, n, method="beta"), abs=1e-9)
    if 0 < k < n:
        assert stats.jeffreys(k, n) == pytest.approx(proportion_confint(k, n, method="jeffreys"), abs=1e-9)
    for interval in (stats.wilson(k, n), stats.clopper_pearson(k, n), stats.jeffreys(k, n)):
        assert 0 <= interval.low <= k / n <= interval.high <= 1


@pytest.mark.parametrize(
    ("k1", "n1", "k2", "n2", "low", "high"),
    # Newcombe 1998 (Stat Med 17:873), table II, method 10
    [(56, 70, 48, 80, 0.0524, 0.3339), (9, 10, 3, 10, 0.1705, 0.8090), (10, 10, 0, 10, 0.6075, 1.0)],
)
def test_newcombe_equals_his_table(k1: int, n1: int, k2: int, n2: int, low: float, high: float) -> None:
    assert stats.newcombe(k1, n1, k2, n2) == pytest.approx((low, high), abs=6e-5)


@given(counts, counts)
def test_newcombe_equals_statsmodels(a: tuple[int, int], b: tuple[int, int]) -> None:
    low, high = stats.newcombe(*a, *b)
    if a[1] and b[1]:
        expected = confint_proportions_2indep(*a, *b, method="newcomb", compare="diff")
        assert (low, high) == pytest.approx(expected, abs=1e-9)
    else:
        assert (low, high) == (-1, 1)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((14, 5, 0, 22), 0.011, 0.226),  # Altman et al., Statistics with Confidence (2000), table 6.2
        (
            (1, 1, 7, 12),
            -0.507,
            -0.026,
        ),  # Bentur 2009 in Fagerland et al., Contingency Tables (2017), chapter 8
        ((20, 12, 2, 16), 0.0562, 0.3292),  # Newcombe 1998 (Stat Med 17:2635), table III
        ((36, 12, 2, 0), 0.0569, 0.3404),
    ],
)
def test_newcombe_paired_equals_published(table: tuple[int, int, int, int], low: float, high: float) -> None:
    assert stats.newcombe_paired(*table) == pytest.approx((low, high), abs=6e-4)


@given(cells, cells, cells, cells)
def test_newcombe_paired_is_antisymmetric_and_contains_the_estimate(a: int, b: int, c: int, d: int) -> None:
    low, high = stats.newcombe_paired(a, b, c, d)
    assert (low, high) == pytest.approx(tuple(-x for x in reversed(stats.newcombe_paired(a, c, b, d))))
    if n := a + b + c + d:
        assert -1 <= low <= (b - c) / n <= high <= 1


def test_mcnemar() -> None:
    # Agresti's presidential approval data (R: ?mcnemar.test) has 150 and 86 discordant pairs.
    assert stats.mcnemar(150, 86) == pytest.approx(sps.binomtest(86, 236).pvalue)
    assert stats.mcnemar(0, 0) == 1
    assert stats.mcnemar(5, 0) == pytest.approx(2 / 32)  # five discordant pairs never reach 0.05
    assert stats.mcnemar(6, 0) == pytest.approx(2 / 64)
    assert stats.mcnemar(2, 9, "less") == pytest.approx(sps.binom.cdf(2, 11, 0.5))
    assert stats.mcnemar(2, 9, "greater") == pytest.approx(sps.binom.sf(1, 11, 0.5))
    assert stats.mcnemar(4, 4) == 1
    assert stats.mcnemar(7, 2) < stats.mcnemar(7, 2.5) < stats.mcnemar(7, 3)  # effective numbers of pairs
    assert stats.fisher(3, 4, 1, 4) == pytest.approx(
        0.4857, abs=1e-4
    )  # R: ?fisher.test, the tea tasting lady
    assert stats.fisher(0, 0, 1, 4) == 1


def test_adjusted_pvalues() -> None:
    p = [0.01, 0.04, 0.03, 0.005]  # by hand, and as R's p.adjust
    assert stats.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert stats.holm([]) == stats.benjamini_hochberg([]) == []


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_adjusting_keeps_the_order_and_never_helps(p: list[float]) -> None:
    for value, adjusted_value in zip(p, stats.holm(p), strict=True):  # by the definition
        smaller = sorted(p)[: sorted(p).index(value) + 1]
        assert adjusted_value == min(1.0, max((len(p) - i) * x for i, x in enumerate(smaller)))
    for adjusted in (stats.holm(p), stats.benjamini_hochberg(p)):
        assert all(b >= a - 1e-12 for a, b in zip(p, adjusted, strict=True))
        order = np.argsort(p)
        assert all(np.diff(np.array(adjusted)[order]) >= -1e-12)
        assert max(adjusted) <= 1


def test_macro_mean_weighs_tasks_and_cells_equally() -> None:
    success = [1, 1, 1, 0, 0, 1]
    tasks = [0, 0, 0, 1, 2, 3]  # cell 0: tasks 1.0 and 0.0; cell 1: tasks 0.0 and 1.0
    estimate = stats.macro_mean(success, tasks, [0, 0, 0, 0, 1, 1])
    assert estimate.value == 0.5
    assert estimate == stats.macro_mean(success, tasks, [0, 0, 0, 0, 1, 1])  # seeded
    nothing = stats.macro_mean([], [])
    assert math.isnan(nothing.value)
    assert nothing[1:] == (0, 1)


def test_macro_never_narrower_than_the_score_interval() -> None:
    zero = stats.macro_mean([0] * 50, np.arange(50) // 5)
    assert zero[1:] == pytest.approx(stats.wilson(0, 50))


@pytest.mark.parametrize(("tasks", "a", "b"), [(10, 2, 2), (10, 0.5, 5), (5, 1, 1)])
def test_macro_interval_covers_the_mean_over_new_tasks(tasks: int, a: float, b: float) -> None:
    rng = np.random.default_rng(0)
    task = np.repeat(np.arange(tasks), 50)
    hits = 0
    for trial in range(300):
        success = rng.random(len(task)) < rng.beta(a, b, tasks)[task]
        estimate = stats.macro_mean(success, task, resamples=500, seed=trial)
        hits += estimate.low <= a / (a + b) <= estimate.high
    assert 0.90 <= hits / 300 <= 0.99  # nominal 0.95; ten very unequal tasks reach 0.91


def test_wilson_covers_and_mcnemar_keeps_its_size_exactly() -> None:
    for n, p in [(50, 0.1), (50, 0.5), (500, 0.02)]:
        k = np.arange(n + 1)
        covers = [low <= p <= high for low, high in (stats.wilson(int(i), n) for i in k)]
        assert 0.92 <= sps.binom.pmf(k, n, p) @ covers <= 0.99
    for discordance in (0.02, 0.1, 0.5):
        assert stats.paired_power(500, 0.0, discordance) <= 0.05


def test_power() -> None:
    # R: ?power.prop.test
    assert stats.unpaired_power(50, 0.50, 0.75) == pytest.approx(0.7401659, abs=1e-6)
    assert stats.unpaired_sample_size(0.50, 0.75, power=0.90) == pytest.approx(76.7, abs=0.05)
    # Connor's formula gives 155 and 312 pairs; the exact test needs a little more.
    assert 155 < stats.paired_sample_size(0.10, 0.20) < 175
    assert 312 < stats.paired_sample_size(0.05, 0.10) < 345
    rng = np.random.default_rng(1)
    x = rng.multinomial(200, [0.14, 0.06, 0.80], size=3000)
    found = np.mean([stats.mcnemar(int(a), int(b)) <= 0.05 for a, b, _ in x])
    assert stats.paired_power(200, 0.08, 0.20) == pytest.approx(found, abs=0.03)
    # of a thousand million pairs only what can happen is looked at; more are refused
    assert stats.paired_power(10**9, 0.001, 0.2) > 0.99
    with pytest.raises(UserError, match="larger difference"):
        stats.paired_sample_size(1e-6, 0.5)
    with pytest.raises(ValueError, match="discordance"):
        stats.paired_power(100, 0.3, 0.2)
