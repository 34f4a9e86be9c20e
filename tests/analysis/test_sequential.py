"""The sequential rule: its error and the episodes that it saves, by simulation with fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from apt_bench.analysis import stats
from apt_bench.analysis.sequential import Decision, Look, sequential_levels, sequential_mcnemar


def _looks(rng: np.random.Generator, up: float, down: float, maximum: int = 400) -> list[Look]:
    """A look every 50 pairs."""
    x = rng.choice([1, -1, 0], p=[up, down, 1 - up - down], size=maximum)
    return [Look(n, int((x[:n] == 1).sum()), int((x[:n] == -1).sum())) for n in range(50, maximum + 1, 50)]


def _played(
    rng: np.random.Generator, up: float, down: float, margin: float | None = None, maximum: int = 400
) -> tuple[Decision, int]:
    """The verdict of a comparison, and the number of pairs at its end."""
    looks = _looks(rng, up, down, maximum)
    for i in range(len(looks)):
        decision = sequential_mcnemar(looks[: i + 1], maximum, margin=margin)
        if decision.final:
            break
    return decision, looks[i].pairs


def _share(verdict: str, found: list[tuple[Decision, int]]) -> float:
    return sum(d.verdict == verdict for d, _ in found) / len(found)


def test_no_difference_is_seldom_taken_for_one() -> None:
    rng = np.random.default_rng(2)
    found = [_played(rng, 0.1, 0.1) for _ in range(400)]
    assert _share("undecided", found) >= 1 - 0.075  # 0.05 + 2.3 standard errors
    p = np.array([d.p for d, _ in found])
    assert all(np.mean(p <= u) <= u + 2.5 * np.sqrt(u * (1 - u) / 400) for u in (0.01, 0.05, 0.2, 0.5))
    assert all((d.p <= 0.05) == (d.verdict != "undecided") for d, _ in found)


def test_a_difference_is_decided_early_and_power_is_kept() -> None:
    rng = np.random.default_rng(2)
    found = [_played(rng, 0.16, 0.06) for _ in range(100)]
    assert _share("a better", found) > stats.paired_power(400, 0.10, 0.22) - 0.05
    assert np.mean([pairs for _, pairs in found]) < 300


@pytest.mark.parametrize("discordance", [0.05, 0.12])
def test_a_difference_of_the_margin_is_seldom_called_equivalent(discordance: float) -> None:
    rng = np.random.default_rng(4)
    up, down = (discordance + 0.05) / 2, (discordance - 0.05) / 2
    found = [_played(rng, up, down, margin=0.05) for _ in range(200)]
    assert _share("equivalent", found) <= 0.05 + 2.3 * 0.0154
    assert _share("b better", found) <= 0.025


def test_no_change_is_called_equivalent_early() -> None:
    rng = np.random.default_rng(5)
    found = [_played(rng, 0.02, 0.02, margin=0.05) for _ in range(100)]
    assert _share("equivalent", found) > 0.9
    same = [Look(n, 0, 0) for n in range(50, 401, 50)]  # a deterministic policy
    assert [sequential_mcnemar(same[:i], 400, margin=0.05).verdict for i in (3, 4)] == [
        "undecided",
        "equivalent",
    ]
    assert sequential_mcnemar(same, 400).verdict == "undecided"


def test_levels_equal_the_published_ones() -> None:
    """Lan and DeMets' O'Brien-Fleming-like boundary of five even looks at 0.025 (Jennison and Turnbull 2000, and
    R's gsDesign, sfLDOF)."""
    found = sequential_levels((0.2, 0.4, 0.6, 0.8, 1.0), 0.025)
    assert found == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=2e-3)
    assert sequential_levels((1.0,), 0.05)[0] == pytest.approx(1.6449, abs=2e-3)


def test_peeking_at_the_fixed_test_would_not_keep_it() -> None:
    rng = np.random.default_rng(3)
    x = rng.choice([1, -1, 0], p=[0.1, 0.1, 0.8], size=(400, 400))
    up, down = (np.cumsum(x == s, axis=1)[:, 49::50] for s in (1, -1))
    peeked = [any(stats.mcnemar(int(a), int(b)) <= 0.05 for a, b in zip(u, d, strict=True))
              for u, d in zip(up, down, strict=True)]  # fmt: skip
    assert np.mean(peeked) > 0.08


def test_sequential_refuses_impossible_looks() -> None:
    with pytest.raises(ValueError, match="grow"):
        sequential_mcnemar([Look(50, 5, 5), Look(60, 4, 5)], 100)
    with pytest.raises(ValueError, match="maximum"):
        sequential_mcnemar([Look(150, 5, 5)], 100)
    assert sequential_mcnemar([], 100) == ("undecided", False, math.inf, 1.0)
    # One look at the end is the ordinary exact test.
    for a, b in [(6, 0), (5, 0), (20, 8), (19, 9)]:
        decision = sequential_mcnemar([Look(100, a, b)], 100)
        assert (decision.verdict != "undecided") == (stats.mcnemar(a, b) <= 0.05)
        assert decision.p == pytest.approx(stats.mcnemar(a, b))
