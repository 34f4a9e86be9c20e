"""Runs are matched by class, arguments and weights, never by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import make_run, write_run

from apt_bench.analysis.run import load_run, load_runs
from apt_bench.core.errors import UserError
from apt_bench.reporting.chart_style import run_colours
from apt_bench.reporting.charts import success_chart
from apt_bench.reporting.control_table import control_table
from apt_bench.reporting.headline_tables import suite_tables
from apt_bench.reporting.two_stage_gain import gain_table


def policy(weights: str, digest: str | None = None, **args: Any) -> dict[str, Any]:
    return {
        "name": "apt",
        "policy": "apt_bench.policies.apt:AptPolicy",
        "args": {"weights": weights, **args},
        "weights": weights,
        "weights_sha256": digest,
    }


def controls(*runs: Any) -> list[tuple[Any, ...]]:
    table = control_table(runs)
    return (
        [(r.values["run"], r.values["control"], r.values["drop"].text()) for r in table.rows] if table else []
    )  # type: ignore[union-attr]


def test_controls_of_two_checkpoints_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    cells = {"goal_task": 3, "goal_task@stale": 3}
    good = make_run(tmp_path / "good", lambda c, t, i: True, cells, policy=policy("a", "1"))
    bad = make_run(tmp_path / "bad", lambda c, t, i: False, cells, policy=policy("b", "2"))
    found = controls(good, bad)
    assert [(run, drop) for run, _, drop in found] == [("good", "0.0"), ("bad", "0.0")]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (policy("elsewhere/a", "1"), True),  # the same weights in another place
        ({**policy("a", "1"), "name": "mine"}, True),  # the same policy under another name
        (policy("a", "2"), False),
        (policy("a", "1", sample_steps=2), False),
        ({"name": "apt"}, False),  # it does not say what it was
    ],
)
def test_a_control_in_another_run_is_of_the_same_class_arguments_and_weights(
    tmp_path: Path, other: dict[str, Any], same: bool
) -> None:
    run = make_run(tmp_path / "run", lambda c, t, i: True, {"goal_task": 2}, policy=policy("a", "1"))
    path = write_run(tmp_path / "twin", lambda c, t, i: False, {"goal_task@stale": 2})
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**info, "policy": other}))
    twin = load_run(path, "twin")
    expected = [("run", "Goal Task (stale prompt) (twin)", "+100")] if same else []
    assert controls(run, twin) == expected


def test_weights_known_by_their_hash_may_lie_behind_another_path(tmp_path: Path) -> None:
    """Also where the argument spells that path in another way than the policy's declaration."""
    runs = []
    for name, cell, path in (("a", "goal_task", "w"), ("b", "goal_task@stale", "else/w")):
        said = {**policy("w", "1"), "args": {"path": f"./{path}"}, "weights": path, "weights_sha256": "1"}
        runs.append(make_run(tmp_path / name, lambda c, t, i: True, {cell: 2}, policy=said))
    assert [row[:2] for row in controls(*runs)] == [("a", "Goal Task (stale prompt) (b)")]


def test_another_execute_horizon_is_no_control(tmp_path: Path) -> None:
    from runs import PROTOCOL

    run = make_run(tmp_path / "a", lambda c, t, i: True, {"goal_task": 2}, policy=policy("a", "1"))
    other = {**PROTOCOL, "execute": 5}
    twin = make_run(
        tmp_path / "b", lambda c, t, i: True, {"goal_task@stale": 2}, policy=policy("a", "1"), protocol=other
    )
    assert controls(run, twin) == []


def test_runs_of_one_label_stay_two_and_can_be_told_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / d / "run", lambda c, t, i: True, {"goal_pos": 1}) for d in ("x", "y")]
    labels = [r.label for r in load_runs([str(p) for p in paths])]
    assert labels == ["apt (x/run)", "apt (y/run)"]
    runs = load_runs([f"apt (x)={paths[0]}", f"apt (x)={paths[1]}"])
    assert [r.label for r in runs] == ["apt (x) (x/run)", "apt (x) (y/run)"]
    third = write_run(tmp_path / "z", lambda c, t, i: True, {"goal_pos": 1})
    taken = load_runs([f"apt={paths[0]}", f"apt={paths[1]}", f"apt (x/run)={third}"])
    assert len({r.label for r in taken}) == 3
    table = suite_tables(runs, "libero_pro")[0]
    assert [r.values["method"] for r in table.rows[:2]] == [r.label for r in runs]
    figure = success_chart(table, run_colours([r.label for r in runs]))
    assert figure
    bars = [p for axis in figure.axes for p in axis.patches if p.get_facecolor()[:3] != (0xB8 / 255,) * 3]
    assert len({p.get_facecolor() for p in bars}) == len(runs)


def test_two_pairs_of_one_architecture_have_rows_that_can_be_told_apart(tmp_path: Path) -> None:
    def about(two_stage: bool) -> dict[str, Any]:
        return {
            "architecture": "APT",
            "two_stage": two_stage,
            "knowledge_insulation": True,
            "finetune_vlm": False,
        }

    runs = [
        make_run(tmp_path / name, lambda c, t, i: i < 6, {"goal_pos": 10}, policy=about(name.startswith("two")))
        for name in ("two_a", "two_b", "one")
    ]  # fmt: skip
    table = gain_table(runs, "libero_pro", ["goal_pos"])
    assert table
    assert [r.values["method"] for r in table.rows] == ["APT, KI (two_a − one)", "APT, KI (two_b − one)"]


def test_a_gain_is_not_measured_between_policies_with_other_arguments(tmp_path: Path) -> None:
    def about(two_stage: bool, weights: str, **args: Any) -> dict[str, Any]:
        return {**policy(weights, weights, **args), "architecture": "APT", "two_stage": two_stage}

    two = make_run(tmp_path / "two", lambda c, t, i: True, {"goal_pos": 2}, policy=about(True, "a"))
    one = make_run(tmp_path / "one", lambda c, t, i: True, {"goal_pos": 2}, policy=about(False, "b"))
    few = make_run(
        tmp_path / "few", lambda c, t, i: True, {"goal_pos": 2}, policy=about(False, "b", sample_steps=1)
    )
    assert gain_table([two, one], "libero_pro", ["goal_pos"])
    assert gain_table([two, few], "libero_pro", ["goal_pos"]) is None


def test_the_same_run_twice_is_refused_also_behind_a_link(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {"goal_pos": 1})
    (tmp_path / "link").symlink_to(path)
    for again in (path, tmp_path / "link", tmp_path / "." / "run", f"name={path}"):
        with pytest.raises(UserError, match="given twice"):
            load_runs([str(path), str(again)])


def test_a_run_directory_may_be_called_anything(tmp_path: Path) -> None:
    for name in ("a=b", "$x$ <b> 'q' \"q\"", "\x1b[31mred", "\u202etxt", "..x", "a\nb"):
        path = write_run(tmp_path / name, lambda c, t, i: True, {"goal_pos": 1}, policy={"name": ""})
        (run,) = load_runs([str(path)])
        assert run.path == path
        assert run.label.isprintable()
        assert len(run.frame) == 10
