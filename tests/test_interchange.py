"""lerobot's eval_info.json, in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import add, record, write_run
from typer.testing import CliRunner

from apt_bench.cli import build
from apt_bench.core.errors import UserError
from apt_bench.interchange import benchmarks, eval_info, import_eval_info, read_eval_info
from apt_bench.records import RunStore
from apt_bench.regression import compare
from apt_bench.reporting.data import load_run

# As lerobot-eval writes it (its `per_group` and `overall` are means of `per_task` and are not read).
INFO: dict[str, Any] = {
    "per_task": [
        {"task_group": "libero_spatial", "task_id": 0,
         "metrics": {"sum_rewards": [1.0, 0.0], "max_rewards": [1.0, 0.0], "successes": [True, False],
                     "video_paths": ["videos/libero_spatial_0/eval_episode_0.mp4"]}},
        {"task_group": "libero_10_swap", "task_id": 3, "metrics": {"successes": [False, False, True]}},
        {"task_group": "pusht", "task_id": 0, "metrics": {"successes": [1, 0], "video_paths": None}},
    ],
    "overall": {"pc_success": 42.857, "n_episodes": 7, "eval_s": 10.0},
}  # fmt: skip


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_import(tmp_path: Path) -> None:
    assert import_eval_info(write(tmp_path / "e.json", INFO), tmp_path / "run", "pi05") == 7
    run = load_run(tmp_path / "run")
    rates = {
        k: (int(g.success.sum()), len(g)) for k, g in run.frame.groupby(["suite", "cell"], observed=True)
    }
    assert rates == {
        ("libero", "spatial"): (1, 2),
        ("libero_pro", "long_pos"): (1, 3),
        ("lerobot", "pusht"): (1, 2),
    }
    assert run.frame.video.dropna().tolist() == ["videos/libero_spatial_0/eval_episode_0.mp4"]
    assert sum(run.asked.values()) == 7
    with pytest.raises(UserError, match="already holds a run"):
        import_eval_info(tmp_path / "e.json", tmp_path / "run", "pi05")


def test_imported_episodes_are_never_matched(tmp_path: Path) -> None:
    import_eval_info(write(tmp_path / "e.json", INFO), tmp_path / "imported", "pi05")
    own = load_run(write_run(tmp_path / "own", lambda c, t, i: True, {"long_pos": 3}))
    found = compare(own, load_run(tmp_path / "imported"), force=True)
    assert (found.overall.paired, found.cells[0].n_a, found.cells[0].n_b) == (False, 30, 3)


def test_export_and_back(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: i < 2, {"goal_pos": 3, "spatial_task": 2}, tasks=4)
    add(path, record("goal_pos", "task_0", 9, False, outcome="error", failure=None, error="gone"))
    add(path, record("goal_pos", "task_0", 0, False, prompt_id="null"))
    info = eval_info(RunStore.open(path).episodes(), 100.0)
    assert set(info["per_group"]) == {"libero_goal_swap", "libero_spatial_task"}
    assert info["per_group"]["libero_goal_swap"]["pc_success"] == pytest.approx(200 / 3)
    assert info["overall"]["n_episodes"] == 20
    assert info["overall"]["eval_ep_s"] == 5.0
    assert [t["task_id"] for t in info["per_task"]] == [0, 1, 2, 3, 0, 1, 2, 3]
    back = read_eval_info(write(tmp_path / "e.json", info), "apt")
    assert sorted((r.key.suite, r.key.cell, r.outcome == "success") for r in back) == sorted(
        (r.key.suite, r.key.cell, r.outcome == "success")
        for r in RunStore.open(path).episodes()
        if r.outcome != "error" and r.key.prompt == "default"
    )
    assert eval_info([])["overall"]["pc_success"] is None


def test_groups_are_lerobots_names() -> None:
    known = benchmarks()
    assert known["libero_10"] == ("libero", "long")
    assert known["libero_object_task"] == ("libero_pro", "object_task")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no list 'per_task'"),
        ({"per_task": [3]}, r"per_task\[0\] is not an object"),
        ({"per_task": [{"task_group": "x", "metrics": {}}]}, "needs a 'task_group'"),
        (
            {"per_task": [{"task_group": "x", "task_id": 0, "metrics": {"successes": [True, "no"]}}]},
            r"successes\[1\]",
        ),
        ({"per_task": [INFO["per_task"][0], INFO["per_task"][0]]}, "repeats task 0"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_eval_info(write(tmp_path / "e.json", value), "x")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.binary(max_size=6))
def test_damaged_files_never_crash(tmp_path: Path, place: int, noise: bytes) -> None:
    raw = json.dumps(INFO).encode()
    at = place % len(raw)
    (tmp_path / "e.json").write_bytes(raw[:at] + noise + raw[at + 2 :])
    try:
        records = read_eval_info(tmp_path / "e.json", "x")
    except UserError:
        return
    assert len(records) == sum(
        len(t["metrics"]["successes"]) for t in json.loads((tmp_path / "e.json").read_text())["per_task"]
    )


def test_verbs(tmp_path: Path) -> None:
    call = CliRunner().invoke
    write(tmp_path / "e.json", INFO)
    done = call(
        build(), ["import", str(tmp_path / "e.json"), "--out", str(tmp_path / "run"), "--policy", "pi05"]
    )
    assert done.exit_code == 0, done.output
    done = call(build(), ["export", str(tmp_path / "run"), "--out", str(tmp_path / "back.json")])
    assert "7 episodes" in done.output
    with pytest.raises(UserError, match="Cannot write"):
        raise call(build(), ["export", str(tmp_path / "run"), "--out", "/proc/x"]).exception  # type: ignore[misc]
