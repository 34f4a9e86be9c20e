"""The difference of two policies: interval and p-value of one procedure, which whole tasks must support."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sps

from apt_bench.analysis import stats
from apt_bench.analysis.differences import paired, sign_flips, unpaired


def tasks(*won: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b and task of tasks given as (episodes, only A succeeds, only B succeeds); else both fail."""
    a = [i < up for n, up, _ in won for i in range(n)]
    b = [up <= i < up + down for n, up, down in won for i in range(n)]
    return np.array(a), np.array(b), np.repeat(np.arange(len(won)), [n for n, _, _ in won])


def excludes_zero(low: float, high: float) -> bool:
    return low > 0 or high < 0


@pytest.mark.parametrize("count", [2, 3, 5, 6, 10, 40])
def test_one_task_lost_entirely_decides_nothing_however_many_episodes(count: int) -> None:
    found = paired(*tasks((50, 50, 0), *[(50, 0, 0)] * (count - 1)))
    assert found.estimate.value == pytest.approx(1 / count)
    assert found.p > 0.05
    assert found.uneven
    assert found.estimate.low <= 0 < found.estimate.high


def test_all_of_ten_tasks_decide_at_the_least_p_that_they_allow() -> None:
    found = paired(*tasks(*[(50, 3, 0)] * 10))
    assert found.p == pytest.approx(2 / 2**10)
    assert excludes_zero(*found.estimate[1:])


@pytest.mark.parametrize("count", range(2, 6))
def test_fewer_than_six_tasks_decide_only_where_all_point_one_way(count: int) -> None:
    agree, split = [(50, 10, 2)] * count, [(50, 10, 2)] * (count - 1) + [(50, 2, 4)]
    assert paired(*tasks(*agree)).p <= 0.05
    assert paired(*tasks(*split)).p > 0.05


def test_one_task_is_the_exact_test_of_its_episodes() -> None:
    for up, down in [(6, 0), (5, 0), (12, 3), (3, 3)]:
        found = paired(*tasks((50, up, down)))
        assert found.p == pytest.approx(stats.mcnemar(up, down))
        assert excludes_zero(*found.estimate[1:]) == (found.p <= 0.05)
    assert paired(*tasks((50, 12, 3))).estimate[1:] == pytest.approx(stats.tango(50, 12, 3))


rows = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=17
)


@settings(deadline=None, max_examples=80)
@given(rows, st.booleans())
def test_the_interval_excludes_zero_exactly_where_p_is_at_most_5_percent(
    won: list[tuple[int, int, int]], even: bool
) -> None:
    won = [(n, min(up, n), min(down, n - min(up, n))) for n, up, down in won]
    a, b, task = tasks(*won)
    weights = None if even else stats.macro_weights(task)
    found = paired(a, b, task, weights)
    low, high = found.estimate[1:]
    assert -1 <= low <= found.estimate.value <= high <= 1
    assert excludes_zero(low, high) == (found.p <= 0.05)
    turned = paired(b, a, task, weights)
    assert turned.p == pytest.approx(found.p)
    assert (turned.estimate.low, turned.estimate.high) == pytest.approx((-high, -low), abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40), st.integers(1, 40), st.integers(0, 40)), min_size=1,
                max_size=4))  # fmt: skip
def test_unpaired_too(cells: list[tuple[int, int, int, int]]) -> None:
    counts = [(min(k1, n1), n1, min(k2, n2), n2) for n1, k1, n2, k2 in cells]
    found = unpaired(counts)
    assert excludes_zero(*found.estimate[1:]) == (found.p <= 0.05)
    if len(counts) == 1:
        assert found.p >= stats.fisher(*counts[0])


def test_sign_flips_equal_the_test_written_out() -> None:
    rng = np.random.default_rng(1)
    for k in (6, 7, 9):
        w = rng.dirichlet(np.full(k, 5.0))
        d = w * rng.normal(0.1, 0.2, k)
        signs = np.array(list(product((1, -1), repeat=k)))
        p, (low, high) = sign_flips(d, w)
        assert p == pytest.approx(np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12))
        for x, inside in [(low - 1e-6, False), (low + 1e-6, True), (high - 1e-6, True), (high + 1e-6, False)]:
            left = d - x * w  # the effects, were the mean effect x
            rejected = np.mean(np.abs(signs @ left) >= abs(left.sum()) - 1e-12) <= 0.05
            assert rejected != inside


def test_many_tasks_are_drawn_and_repeat() -> None:
    rng = np.random.default_rng(2)
    d = rng.normal(0.02, 0.2, 60) / 60
    found = sign_flips(d, np.full(60, 1 / 60))
    assert found == sign_flips(d, np.full(60, 1 / 60))
    t = d.mean() / (d.std(ddof=1) / np.sqrt(60))
    assert found[0] == pytest.approx(2 * sps.t.sf(abs(t), 59), abs=0.01)


def test_nothing_observed_and_nothing_different() -> None:
    nothing = paired([], [], [])
    assert math.isnan(nothing.estimate.value)
    assert (nothing.estimate[1:], nothing.p) == ((-1, 1), 1)
    same = paired(*tasks(*[(50, 0, 0)] * 10))
    assert same.p == 1
    assert same.estimate[1:] == pytest.approx(stats.tango(500, 0, 0))  # identical is not known to be equal


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("count", [6, 10, 20])
def test_size_over_new_tasks(count: int, spread: float) -> None:
    """Tasks with different effects, which have a mean of zero over all possible tasks."""
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(60):
        effect = np.clip(rng.normal(0, spread, count), -0.9, 0.9)
        up, down = (
            rng.binomial(50, np.maximum(effect, 0) + 0.05),
            rng.binomial(50, np.maximum(-effect, 0) + 0.05),
        )
        found += paired(*tasks(*[(50, u, min(v, 50 - u)) for u, v in zip(up, down, strict=True)])).p <= 0.05
    assert found / 60 <= 0.05 + 2.3 * 0.028


def test_power_over_new_tasks() -> None:
    rng = np.random.default_rng(4)
    won = [[(50, int(u), int(v)) for u, v in zip(rng.binomial(25, 0.3, 10), rng.binomial(25, 0.1, 10), strict=True)]
           for _ in range(60)]  # fmt: skip
    assert np.mean([paired(*tasks(*w)).p <= 0.05 for w in won]) > 0.95
