"""compare and check: known differences are found, reruns without change pass, too little data is inconclusive."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from runs import PROTOCOL, add, make_run, record, write_run
from scipy import stats as sps

from apt_bench.analysis import stats
from apt_bench.analysis.check import check, pairs_to_pass, pass_chance
from apt_bench.analysis.compare import compare
from apt_bench.analysis.frame import episode_frame
from apt_bench.analysis.run import Run, load_run
from apt_bench.core.errors import UserError
from apt_bench.reporting import comparisons
from apt_bench.reporting.table_files import markdown


def planted(
    rng: np.random.Generator, n: int, drop: float, discordance: float, rate: float = 0.6
) -> tuple[Run, Run]:
    """A run and its baseline of one cell with `n` matched episodes, as two correlated coins."""
    lost, won = (discordance + drop) / 2, (discordance - drop) / 2
    draw = rng.choice(4, size=n, p=[rate - lost, lost, won, 1 - rate - won])
    return tuple(  # type: ignore[return-value]
        Run(name, Path(), PROTOCOL, {}, FRAMES[n].assign(success=np.isin(draw, good)), FRAMES[n].iloc[:0])
        for name, good in (("run", (0, 2)), ("baseline", (0, 1)))
    )


FRAMES: dict[int, pd.DataFrame] = {
    n: episode_frame(record("goal_pos", f"task_{i % 10}", i // 10, True) for i in range(n))
    for n in (50, 150, 500)
}


def share(verdict: str, n: int, drop: float, discordance: float, trials: int = 40) -> float:
    rng = np.random.default_rng(11)
    found = [check(*planted(rng, n, drop, discordance)).verdict for _ in range(trials)]
    return found.count(verdict) / trials  # type: ignore[arg-type]


@pytest.mark.parametrize("discordance", [0.12, 0.20])
def test_an_eight_point_drop_at_500_pairs_is_caught_with_the_stated_power(discordance: float) -> None:
    stated = stats.paired_power(500, 0.08, discordance, 0.10)
    assert stated > 0.97
    assert share("regressed", 500, 0.08, discordance) >= stated - 0.06


def test_a_rerun_without_change_passes() -> None:
    assert share("pass", 500, 0.0, 0.08) >= 0.95  # noise of sampling policies
    assert share("pass", 500, 0.0, 0.0, trials=5) == 1  # a deterministic one


def test_the_exact_chance_to_pass_is_the_simulated_one() -> None:
    for n, difference, discordance in [(500, 0.0, 0.20), (150, 0.0, 0.05), (500, -0.05, 0.10)]:
        exact = pass_chance(n, 0.05, discordance, difference)
        assert share("pass", n, -difference, discordance) == pytest.approx(exact, abs=2.3 * 0.08)
    assert [round(pass_chance(500, 0.05, d), 2) for d in (0.0, 0.08, 0.10, 0.20)] == [1.0, 0.99, 0.97, 0.80]
    assert all(
        pass_chance(n, 0.05, d) == 0 for n in (20, 50) for d in (0.0, 0.05, 0.2)
    )  # underpowered: never
    assert all(pass_chance(500, 0.05, d, -0.05) < 0.06 for d in (0.05, 0.1, 0.2))
    needed = pairs_to_pass(0.05, 0.20)
    assert 840 < needed < 900
    assert pass_chance(needed, 0.05, 0.20) >= 0.95


def test_a_drop_of_the_margin_hardly_ever_passes() -> None:
    assert share("pass", 500, 0.05, 0.10) <= 0.10
    assert share("pass", 150, 0.05, 0.05) <= 0.10


def test_underpowered_runs_are_inconclusive_never_pass() -> None:
    assert (
        share("pass", 50, 0.0, 0.0, trials=2) == 0
    )  # not even 50 identical pairs exclude a drop of 5 points
    assert share("inconclusive", 50, 0.0, 0.08, trials=30) >= 0.95
    assert share("pass", 50, 0.08, 0.12, trials=30) == 0
    found = check(*planted(np.random.default_rng(1), 50, -0.08, 0.08))  # 8 points better, yet too few to say
    assert (found.verdict, found.overall and found.overall.verdict) == ("inconclusive", "pass")
    assert "Underpowered" in found.reasons[0]


def test_one_bad_cell_is_found_among_good_ones(tmp_path: Path) -> None:
    cells = dict.fromkeys(["spatial_pos", "object_pos", "goal_pos", "long_pos"], 20)
    baseline = make_run(tmp_path / "baseline", lambda c, t, i: i < 16, cells)
    run = make_run(tmp_path / "run", lambda c, t, i: i < (12 if c == "goal_pos" else 16), cells)
    found = check(run, baseline, margin=0.10)
    assert found.overall is not None
    assert (found.overall.verdict, found.verdict, found.exit_code) == ("pass", "regressed", 1)
    assert [g.name for g in found.cells] == [
        "Spatial Pos",
        "Object Pos",
        "Goal Pos",
        "Long Pos",
    ]  # the suite's order
    assert [g.verdict for g in found.cells] == ["pass", "pass", "regressed", "pass"]
    assert "Goal Pos fell from 80.0% to 60.0% over 200 pairs: 40 episodes lost, 0 won" in found.reasons[0]
    tree = ElementTree.fromstring(comparisons.junit(found, "run", "baseline"))
    assert (tree.get("tests"), tree.get("failures"), tree.get("errors")) == ("6", "2", "0")
    assert len(tree.findall("testcase/failure")) == 2
    assert "apt-bench check: regressed" in comparisons.summary(found, "run", "baseline")


def test_coverage_gate(tmp_path: Path) -> None:
    baseline = make_run(tmp_path / "baseline", lambda c, t, i: True, {"goal_pos": 50})
    path = write_run(tmp_path / "run", lambda c, t, i: True, {"goal_pos": 50})
    lines = (path / "episodes.jsonl").read_text().splitlines(keepends=True)
    (path / "episodes.jsonl").write_text("".join(lines[:480]))
    found = check(load_run(path), baseline)
    assert found.overall is not None
    assert (found.overall.verdict, found.verdict, found.exit_code) == ("pass", "inconclusive", 3)
    assert "480 of the baseline's 500" in found.reasons[0]
    assert check(load_run(path), baseline, coverage=0.9).verdict == "pass"


def test_errors_leave_the_pairs(tmp_path: Path) -> None:
    baseline = make_run(tmp_path / "baseline", lambda c, t, i: True, {"goal_pos": 30})
    path = write_run(tmp_path / "run", lambda c, t, i: True, {"goal_pos": 30}, tasks=9)
    for i in range(30):
        add(path, record("goal_pos", "task_9", i, False, outcome="error", failure=None, error="gone"))
    found = check(load_run(path), baseline)
    assert found.overall is not None
    assert (found.overall.pairs, found.overall.rate, found.verdict) == (270, 1.0, "inconclusive")


def test_nothing_in_common_is_inconclusive(tmp_path: Path) -> None:
    baseline = make_run(tmp_path / "baseline", lambda c, t, i: True, {"goal_pos": 2})
    found = check(make_run(tmp_path / "run", lambda c, t, i: True, {"long_pos": 2}), baseline)
    assert (found.verdict, found.overall) == ("inconclusive", None)
    assert ElementTree.fromstring(comparisons.junit(found, "run", "baseline")).get("errors") == "1"


def test_other_protocols_are_refused_and_the_setting_named(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", lambda c, t, i: i < 6, {"goal_pos": 10})
    b = make_run(tmp_path / "b", lambda c, t, i: i < 3, {"goal_pos": 10},
                 protocol={**PROTOCOL, "execute": 5, "cells": {"x": 2}})  # fmt: skip
    with pytest.raises(UserError, match=r"protocols \(cells\.x: 1 / 2\)"):
        compare(a, b)
    with pytest.raises(UserError, match="--force"):
        check(a, b)
    assert len(compare(a, b, force=True).protocol_settings) == 1
    other_eyes = make_run(tmp_path / "c", lambda c, t, i: True, {"goal_pos": 1},
                          protocol={**PROTOCOL, "hash": "x", "cameras": ["wrist"]})  # fmt: skip
    assert compare(a, other_eyes).protocol_settings == ()


def test_compare_pairs_by_key(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", lambda c, t, i: i < 6, {"goal_pos": 10, "long_pos": 4})
    b = make_run(tmp_path / "b", lambda c, t, i: i < 3, {"goal_pos": 12})
    found = compare(a, b)
    (cell,) = found.cells
    assert (cell.n_a, cell.only_a, cell.only_b, cell.verdict) == (100, 30, 0, "A better")
    assert cell.p == 2 / 2**10  # all ten tasks point the same way
    assert found.overall.difference.value == pytest.approx(0.3)
    assert (found.unmatched_a, found.unmatched_b) == (40, 20)
    assert len(found.tasks) == 10
    assert all(t.verdict == "undecided" for t in found.tasks)  # three discordant pairs each
    table = markdown(comparisons.comparison_tables(found, "a", "b")[1])
    assert "only 3 episodes differ; at least 6 are needed to decide" in table


def test_compare_without_common_episodes_is_unpaired(tmp_path: Path) -> None:
    """The paper's real-robot table: the mean over its cells is clear. The sides share no task, so there is no
    statement about other tasks."""
    table3 = {"so": (29, 27, 30), "uo": (17, 11, 20), "uouc": (16, 9, 20), "uoucue": (28, 16, 40)}
    runs = []
    for side, name in enumerate(("apt", "pi05")):
        path = write_run(tmp_path / name, lambda c, t, i: True, {})
        for cell, row in table3.items():
            for i in range(row[2]):
                add(path, record(cell, f"{name}_trials", i, i < row[side], suite="real_pick_place"))
        runs.append(load_run(path, name))
    found = compare(*runs)
    assert not found.overall.paired
    assert found.overall.p < 0.001
    assert found.overall.words == "A better on these trials"
    assert {c.name: c.p for c in found.cells}["SO"] == stats.fisher(29, 30, 27, 30)
    low, high = found.overall.difference[1:]
    assert 0 < low < found.overall.difference.value < high < 1
    with pytest.raises(UserError, match="common cell"):
        compare(runs[0], make_run(tmp_path / "else", lambda c, t, i: True, {"goal_pos": 1}))


def test_tango_is_the_inverse_of_the_score_test() -> None:
    """At its limits the restricted likelihood's score statistic equals the quantile; at 0 it is McNemar's."""
    for n, a, b in [(44, 1, 0), (50, 12, 2), (500, 30, 70), (60, 0, 0)]:
        for d, sign in zip(stats.tango(n, a, b), (1, -1), strict=True):
            grid = np.linspace(max(0, -d) + 1e-7, (1 - d) / 2 if d > 0 else (1 - d) / 2 - 1e-7, 200001)
            p10, p01 = grid + d, grid
            keep = (p10 > 0) & (p10 + p01 < 1)
            p10, p01 = p10[keep], p01[keep]
            likelihood = a * np.log(p10) + b * np.log(p01) + (n - a - b) * np.log1p(-p10 - p01)
            q = p01[np.argmax(likelihood)]
            z = (a - b - n * d) / np.sqrt(n * (2 * q + d - d * d))
            assert z == pytest.approx(sign * 1.959964, abs=2e-3)
        low, high = stats.tango(n, b, a)
        assert (-high, -low) == pytest.approx(tuple(stats.tango(n, a, b)), abs=1e-9)
    level = 1 - 2 * sps.norm.sf((70 - 30) / np.sqrt(100))
    assert stats.tango(500, 70, 30, level).low == pytest.approx(0, abs=1e-9)
