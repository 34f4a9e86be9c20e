"""lerobot's eval_info.json, in and out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import add, record, write_run
from typer.testing import CliRunner

from apt_bench.analysis.compare import compare
from apt_bench.analysis.run import load_run
from apt_bench.cli import build
from apt_bench.core.errors import UserError
from apt_bench.core.files import exclusive
from apt_bench.runs.eval_info import IMPORTED, benchmarks, eval_info, import_eval_info, read_eval_info
from apt_bench.runs.records import RunStore

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
    assert sum(run.requested.values()) == 7
    with pytest.raises(UserError, match="already holds a run"):
        import_eval_info(tmp_path / "e.json", tmp_path / "run", "pi05")


def test_imported_episodes_are_never_matched(tmp_path: Path) -> None:
    import_eval_info(write(tmp_path / "e.json", INFO), tmp_path / "imported", "pi05")
    own = load_run(write_run(tmp_path / "own", lambda c, t, i: True, {"long_pos": 3}))
    found = compare(own, load_run(tmp_path / "imported"), force=True)
    assert (found.overall.paired, found.cells[0].n_a, found.cells[0].n_b) == (False, 30, 3)


OLD: dict[str, Any] = {  # as lerobot before 0.4 wrote it
    "per_episode": [
        {"episode_ix": 0, "sum_reward": 90.1, "max_reward": 1.0, "success": True, "seed": 1000},
        {"episode_ix": 1, "sum_reward": 13.7, "max_reward": 0.4, "success": False, "seed": None},
    ],
    "aggregated": {"avg_sum_reward": float("nan"), "pc_success": 50.0, "eval_s": 9.8, "eval_ep_s": 4.9},
    "video_paths": ["outputs/eval/videos/eval_episode_0.mp4"],
}


def test_files_of_lerobot_before_0_4_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "e.json", OLD)
    assert import_eval_info(path, tmp_path / "named", "dp", "pusht") == 2
    run = load_run(tmp_path / "named")
    assert [(str(e.suite), str(e.cell), e.success) for e in run.frame.itertuples()] == [
        ("lerobot", "pusht", True),
        ("lerobot", "pusht", False),
    ]
    assert run.frame.video.dropna().tolist() == ["outputs/eval/videos/eval_episode_0.mp4"]
    with pytest.raises(UserError, match="names its task groups itself"):
        read_eval_info(write(tmp_path / "new.json", INFO), "dp", "pusht")


def test_two_old_files_that_do_not_name_their_task_are_not_silently_compared(tmp_path: Path) -> None:
    for name in "ab":
        info = {**OLD, "aggregated": {"eval_s": ord(name)}}
        import_eval_info(write(tmp_path / f"{name}.json", info), tmp_path / name, name)
    a, b = (load_run(tmp_path / name) for name in "ab")
    with pytest.raises(UserError, match="unnamed task, import with --group NAME: "):
        compare(a, b)
    assert compare(a, b, force=True).overall.n_a == 2


def test_an_import_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "e.json", INFO)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("apt_bench.runs.eval_info.write_json", full)
    with pytest.raises(UserError, match="No space left"):
        import_eval_info(path, tmp_path / "run", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["e.json"]
    monkeypatch.undo()
    (tmp_path / "run.part").mkdir()  # as a kill leaves it
    (tmp_path / "run.part" / "episodes.jsonl").write_text("half")
    assert import_eval_info(path, tmp_path / "run", "x") == 7
    assert not (tmp_path / "run.part").exists()


def test_an_import_keeps_out_of_a_folder_in_use_or_with_something_in_it(tmp_path: Path) -> None:
    path = write(tmp_path / "e.json", INFO)
    with exclusive(tmp_path / "busy", "apt-bench run"):
        done = subprocess.run(
            [sys.executable, "-m", "apt_bench", "import", path, "--out", tmp_path / "busy", "--policy", "x"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert "is writing to" in done.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        import_eval_info(path, tmp_path / "full", "x")
    assert (tmp_path / "full" / "mine.txt").read_text() == "precious"


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
        ({"per_task": []}, "holds no episode"),
        ({"per_episode": [], "aggregated": {}}, "holds no episode"),
        ({"per_episode": [{"pc_success": 100}]}, r"per_episode\[0\] is not an object with a 'success'"),
        ({"per_episode": [{"success": 2}]}, r"per_episode\[0\]: success is 2, not true"),
        (
            {"per_task": [{"task_group": "x", "task_id": 0, "metrics": {"successes": []}}]},
            r"per_task\[0\] holds no",
        ),
        (
            {"per_task": [{"task_group": "\x1b[31m", "task_id": 0, "metrics": {"successes": [1]}}]},
            "printable text",
        ),
        (
            {"per_task": [{"task_group": "x" * 999, "task_id": 0, "metrics": {"successes": [1]}}]},
            "printable text",
        ),
        (
            {
                "per_task": [
                    {"task_group": g, "task_id": 0, "metrics": {"successes": [1]}}
                    for g in ("libero_spatial", "spatial")
                ]
            },
            "two of its groups would be the cell 'spatial'",
        ),
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
        import_eval_info(write(tmp_path / "e.json", value), tmp_path / "run", "x")
    assert not (tmp_path / "run").exists()


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
    assert all(r.prompt_source == IMPORTED for r in records)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
task = st.fixed_dictionaries(
    {},
    optional={
        "task_group": st.sampled_from(["libero_spatial", "pusht", "", "\ud800"]) | junk,
        "task_id": st.integers(-2, 9) | junk,
        "metrics": junk | st.fixed_dictionaries({"successes": junk | st.lists(st.booleans() | junk, max_size=4)},
                                                optional={"video_paths": junk}),
    },
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries(
        {}, optional={"per_task": st.lists(task, max_size=3) | junk, "per_episode": st.lists(junk) | junk}
    )
)
def test_files_of_any_shape_are_read_or_refused(tmp_path: Path, value: Any) -> None:
    try:
        import_eval_info(write(tmp_path / "e.json", value), tmp_path / "run", "x")
    except UserError:
        assert not (tmp_path / "run").exists()
        return
    assert len(load_run(tmp_path / "run").frame)
    shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("text", ["1e400", '{"per_task": 1e400}', "[" * 200_000, "9" * 10_000, '{"per_task": [1e400]}',
                                  '{"per_task": [], "per_task": []}', "\ufeff{}", ""])  # fmt: skip
def test_texts_that_break_readers_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "e.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        read_eval_info(tmp_path / "e.json", "x")


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
