"""Verdicts of compare and check: their scope, unequal settings, unfinished and imported runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import PROTOCOL, add, make_run, record, write_run
from typer.testing import CliRunner

from apt_bench.analysis.check import check
from apt_bench.analysis.compare import compare
from apt_bench.analysis.run import Run, load_run, load_runs
from apt_bench.cli import build
from apt_bench.core.errors import UserError
from apt_bench.reporting import comparisons
from apt_bench.reporting.table import Rate
from apt_bench.reporting.table_files import markdown
from apt_bench.reporting.two_stage_gain import gain_table
from apt_bench.runs.eval_info import import_eval_info
from apt_bench.suites import EpisodeKey


def call(*words: object) -> Any:
    return CliRunner().invoke(build(), [str(w) for w in words])


def first_lost(path: Path, rate: float = 0.6, **rest: Any) -> Run:
    return make_run(path, lambda c, t, i: t != "task_0" and i < 50 * rate, {"goal_pos": 50}, **rest)


@pytest.mark.parametrize("tasks", [2, 5, 10])
def test_one_task_lost_is_no_verdict_anywhere(tmp_path: Path, tasks: int) -> None:
    whole = make_run(tmp_path / "a", lambda c, t, i: i < 30, {"goal_pos": 50}, tasks=tasks)
    lost = first_lost(tmp_path / "b", tasks=tasks)
    found = compare(whole, lost)
    for c in (found.overall, *found.cells):
        assert c.verdict == "undecided"
        assert c.difference.low <= 0 < c.difference.high
        assert f"the {tasks} tasks disagree" in c.words
    assert found.tasks[0].verdict == "A better"  # of this task it is true
    assert found.tasks[0].words == "A better on this task"
    table = markdown(comparisons.comparison_tables(found, "a", "b")[0])
    assert "McNemar" not in table
    assert "about these tasks only" in table


def test_the_gate_asks_about_these_tasks(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "a", lambda c, t, i: i < 30, {"goal_pos": 50})
    found = check(first_lost(tmp_path / "b"), whole)
    assert (found.verdict, found.exit_code) == ("regressed", 1)
    assert "About these tasks and initial states" in markdown(comparisons.check_table(found, "b", "a"))


def test_the_reports_gain_has_the_interval_of_compare(tmp_path: Path) -> None:
    about = [{"policy": {"two_stage": t, "architecture": "pi"}} for t in (True, False)]
    two = make_run(tmp_path / "a", lambda c, t, i: i < 30, {"goal_pos": 50}, policy=about[0]["policy"])
    one = first_lost(tmp_path / "b", policy=about[1]["policy"])
    table = gain_table([two, one], "libero_pro", ["goal_pos"])
    assert table is not None
    rate = table.rows[0].values["goal_pos"]
    assert isinstance(rate, Rate)
    assert (rate.low, rate.high) == compare(two, one).cells[0].difference[1:]


def test_initial_states_with_a_sentence_each_are_tasks_of_their_own(tmp_path: Path) -> None:
    """rigid_pick_place: two templates, but every initial state is another scene and sentence."""
    runs = []
    for name, solved in (("a", 20), ("b", 8)):
        path = write_run(tmp_path / name, lambda c, t, i: True, {})
        for task in ("to_plate", "to_bowl"):
            for i in range(25):
                add(
                    path,
                    record(
                        "so", task, i, i < solved, suite="rigid_pick_place", prompt=f"Move item {i} {task}."
                    ),
                )
        runs.append(load_run(path, name))
    found = compare(*runs)
    assert (found.overall.tasks, found.overall.words) == (50, "A better")


def test_rates_and_difference_of_a_row_agree_where_tasks_have_unequal_episodes(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / n, lambda c, t, i: True, {}) for n in ("a", "b")]
    for path, side in zip(paths, (0, 1), strict=True):
        add(path, *[record("goal_pos", "long", i, side == 0) for i in range(90)])
        add(path, *[record("goal_pos", f"short_{k}", i, side == 1) for k in range(9) for i in range(2)])
    found = compare(*(load_run(p, p.name) for p in paths)).overall
    assert found.difference.value == pytest.approx(-0.8)
    assert found.rate_a - found.rate_b == pytest.approx(-0.8)
    assert found.verdict != "A better"


def test_unmatched_runs_share_their_tasks_if_nothing_else(tmp_path: Path) -> None:
    """Other seeds, the same ten tasks, one of them lost: the tasks do not agree here either."""
    runs = []
    for name, seed in (("a", 1), ("b", 2)):
        path = write_run(tmp_path / name, lambda c, t, i: True, {})
        for t in range(10):
            for i in range(50):
                won = i < 30 and (name == "a" or t > 0)
                key = EpisodeKey("libero_pro", "goal_pos", f"task_{t}", i, seed)
                add(path, record("goal_pos", f"task_{t}", i, won, key=key))
        runs.append(load_run(path, name))
    found = compare(*runs)
    assert not found.overall.paired
    assert (found.overall.tasks, found.overall.verdict) == (10, "undecided")
    assert found.overall.difference.low <= 0


def test_cautions_of_a_stopping_rule_and_of_missing_episodes_stand_in_every_comparison(
    tmp_path: Path,
) -> None:
    a = write_run(tmp_path / "a", lambda c, t, i: True, {"goal_pos": 4})
    info = json.loads((a / "run.json").read_text())
    info["sequential"] = {"against": "x", "over": True, "verdict": "better", "maximum": 40, "looks": []}
    (a / "run.json").write_text(json.dumps(info))
    b = write_run(tmp_path / "b", lambda c, t, i: False, {})
    add(b, *[record("goal_pos", "other", i, False) for i in range(4)])
    info = json.loads((b / "run.json").read_text())
    info["requested"] = {"goal_pos": {"other": 9}}
    (b / "run.json").write_text(json.dumps(info))
    found = compare(load_run(a, "a"), load_run(b, "b"))
    assert not found.overall.paired
    assert "b is not finished: 4 of the 9 requested episodes" in found.cautions[0]
    assert "a used a stopping rule" in found.cautions[1]
    assert "stopping rule" in markdown(comparisons.comparison_tables(found, "a", "b")[0])


def test_an_execute_horizon_is_compared_and_said(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", lambda c, t, i: i < 6, {"goal_pos": 10})
    b = make_run(tmp_path / "b", lambda c, t, i: i < 6, {"goal_pos": 10},
                 protocol={**PROTOCOL, "execute": 5, "cameras": ["agentview", "wrist"]})  # fmt: skip
    for table in (
        comparisons.comparison_tables(compare(a, b), "a", "b")[0],
        comparisons.check_table(check(a, b), "a", "b"),
    ):
        assert "a executes 10 actions per decision, b 5" in markdown(table)
        assert "a uses no camera, b agentview and wrist" in markdown(table)
    for changed in ({"seed": 8}, {"suite": "libero"}, {"cells": {"x": 2}}, {"simulator": {"mujoco": "4"}}):
        other = make_run(tmp_path / next(iter(changed)), lambda c, t, i: True, {"goal_pos": 10},
                         protocol={**PROTOCOL, **changed})  # fmt: skip
        with pytest.raises(UserError, match="different protocols"):
            compare(a, other)


INFO = {
    "per_task": [
        {"task_group": "pusht", "task_id": t, "metrics": {"successes": [True, False] * 10}} for t in range(8)
    ]
}


def imported(path: Path, name: str, info: Any = INFO) -> Run:
    (path / f"{name}.json").write_text(json.dumps(info))
    import_eval_info(path / f"{name}.json", path / name, name)
    return load_run(path / name)


def test_two_imported_files_are_never_matched(tmp_path: Path) -> None:
    a, b = imported(tmp_path, "a"), imported(tmp_path, "b")
    found = compare(a, b)
    assert not found.overall.paired
    assert found.overall.tasks == 8  # the same tasks, though
    assert len(found.tasks) == 0
    with pytest.raises(UserError, match=r"a was imported .* needs matched episodes"):
        check(a, b)
    with pytest.raises(UserError, match="was imported"):
        check(make_run(tmp_path / "own", lambda c, t, i: True, {"goal_pos": 2}), b, force=True)


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for side in "ab":
        write_run(tmp_path / side / "run", lambda c, t, i: True, {"goal_pos": 2})
    labels = [r.label for r in load_runs([str(tmp_path / "a/run"), str(tmp_path / "b/run")])]
    assert labels[0] != labels[1]
    shown = call("compare", tmp_path / "a/run", tmp_path / "b/run").output
    assert all(label in shown for label in labels)


def test_every_exit_code_has_one_meaning(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", lambda c, t, i: i < 16, {"goal_pos": 20})
    runs = {"same": (20, 16, 0), "worse": (20, 10, 1), "small": (2, 16, 3)}
    for name, (n, solved, code) in runs.items():
        path = write_run(tmp_path / name, lambda c, t, i, solved=solved: i < solved, {"goal_pos": n})
        assert call("check", path, "--against", base).exit_code == code
    with pytest.raises(UserError) as caught:
        raise call("check", tmp_path / "none", "--against", base).exception  # type: ignore[misc]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("margin", ["97", "98", "99.99", "0.01"])
def test_every_margin_below_100_points_is_answered(tmp_path: Path, margin: str) -> None:
    base = write_run(tmp_path / "base", lambda c, t, i: i < 16, {"goal_pos": 20})
    run = write_run(tmp_path / "run", lambda c, t, i: i < 15, {"goal_pos": 20})
    assert "Verdict: " in call("check", run, "--against", base, "--margin", margin).output


@pytest.mark.parametrize("value", ["0", "100", "-5", "nan", "inf", "-inf", "1e9", "1e400"])
@pytest.mark.parametrize("words", [
    ["check", "{run}", "--against", "{run}", "--margin"], ["power", "60", "60", "--margin"],
    ["power", "50", "40", "--power"], ["power", "50", "40", "--alpha"],
])  # fmt: skip
def test_numbers_that_cannot_be_meant_are_named(tmp_path: Path, words: list[str], value: str) -> None:
    run = write_run(tmp_path / "run", lambda c, t, i: True, {"goal_pos": 1})
    done = call(*[w.format(run=run) for w in words], value)
    assert isinstance(done.exception, UserError)
    assert words[-1] in str(done.exception)


@pytest.mark.parametrize("words", [
    ["check", "{run}", "--against", "{run}", "--coverage", "nan"],
    ["check", "{run}", "--against", "{run}", "--coverage", "101"],
    ["power", "50", "40", "--episodes", "1e9"], ["power", "50", "49.99999"], ["power", "nan", "5"],
    ["power", "60", "60", "--margin", "5", "--episodes", "1000000000"],
    ["power", "50", "40", "--episodes", "99999999999999999999"], ["power", "50", "40", "--discordance", "inf"],
])  # fmt: skip
def test_so_are_others(tmp_path: Path, words: list[str]) -> None:
    run = write_run(tmp_path / "run", lambda c, t, i: True, {"goal_pos": 1})
    done = call(*[w.format(run=run) for w in words])
    assert isinstance(done.exception, UserError) or done.exit_code == 2


def test_empty_runs_are_told(tmp_path: Path) -> None:
    empty = make_run(tmp_path / "empty", lambda c, t, i: True, {})
    full = make_run(tmp_path / "full", lambda c, t, i: True, {"goal_pos": 2})
    with pytest.raises(UserError, match="empty has no finished episode"):
        compare(empty, full)
    found = check(empty, full)
    assert (found.verdict, found.exit_code) == ("inconclusive", 3)
    assert "empty has no finished episode" in found.reasons[0]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / n, lambda c, t, i: True, {"goal_pos": 2}) for n in "ab")
    for words in (["compare", a, b, "--out"], ["check", a, "--against", b, "--junit"]):
        with pytest.raises(UserError, match="Cannot write"):
            raise call(*words, "/proc/none/x").exception  # type: ignore[misc]


def pair(folder: Path) -> tuple[Path, Path]:
    """A run that has regressed, and its baseline."""
    return (
        write_run(folder / "worse", lambda c, t, i: i < 10, {"goal_pos": 20}),
        write_run(folder / "base", lambda c, t, i: i < 16, {"goal_pos": 20}),
    )


@pytest.mark.parametrize("option", ["--junit", "--summary"])
def test_a_place_for_the_verdict_is_tried_before_there_is_one(tmp_path: Path, option: str) -> None:
    worse, base = pair(tmp_path)
    (tmp_path / "folder").mkdir()
    done = call("check", worse, "--against", base, option, tmp_path / "folder")
    assert "Cannot write" in str(done.exception)
    assert "Verdict" not in done.output
    (tmp_path / "old.xml").write_text("before")
    done = call("check", worse, "--against", tmp_path / "none", option, tmp_path / "old.xml")
    assert "Cannot read" in str(done.exception) or "holds no run" in str(done.exception)
    assert (tmp_path / "old.xml").read_text() == "before"


def test_a_disk_that_fills_meanwhile_hides_no_verdict(tmp_path: Path) -> None:
    worse, base = pair(tmp_path)
    same = write_run(tmp_path / "same", lambda c, t, i: i < 16, {"goal_pos": 20})
    for run, code in ((worse, 1), (same, 2)):  # a pass whose file is missing is none
        done = call("check", run, "--against", base, "--junit", "/dev/full")
        assert done.exit_code == code
        assert "Verdict: " in done.output


def test_a_comparison_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    worse, base = pair(tmp_path)
    out = tmp_path / "out"
    for _ in range(2):
        assert call("compare", worse, base, "--out", out).exit_code == 0
    assert {p.name for p in out.iterdir()} == {"tables", "figures", "comparison-files.json"}
    mine = tmp_path / "mine"
    (mine / "tables").mkdir(parents=True)
    (mine / "tables" / "compare.csv").write_text("mine")
    call("report", base, "--out", tmp_path / "report")
    for folder in (mine, tmp_path / "report"):
        before = sorted(folder.rglob("*"))
        done = call("compare", worse, base, "--out", folder)
        assert "holds no comparison" in str(done.exception)
        assert "Verdict" not in done.output
        assert sorted(folder.rglob("*")) == before
    assert (mine / "tables" / "compare.csv").read_text() == "mine"
    assert "holds no report" in str(call("report", base, "--out", out).exception)


def test_a_check_without_pairs_keeps_its_cautions(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lambda c, t, i: True, {"goal_pos": 2})
    base = write_run(tmp_path / "base", lambda c, t, i: True, {"object_pos": 2})
    info = json.loads((base / "run.json").read_text())
    info["requested"]["object_pos"]["task_0"] = 5
    (base / "run.json").write_text(json.dumps(info))
    assert any(
        "base is not finished" in c for c in check(load_run(run, "run"), load_run(base, "base")).cautions
    )
