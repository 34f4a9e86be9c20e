"""`apt-bench watch`: the state of a run directory, while it is written and afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apt_bench.cli import watch
from apt_bench.core.files import Locked, exclusive, is_locked
from apt_bench.runs.records import RunStore
from tests.runs import add, record, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with 4 of 6 requested episodes, and 2 of 2 under a probe."""
    path = write_run(tmp_path / "run", lambda c, t, i: i == 0, {"goal_pos": 2}, tasks=2)
    add(path, *(record("goal_pos", "task_0", i, True, prompt_id="null") for i in range(2)))
    info = json.loads((path / "run.json").read_text())
    info["requested"]["goal_pos"]["task_1"] = 4
    info |= {"requested_probes": {"null": {"goal_pos": {"task_0": 2}}}, "command": "apt-bench run --suite x"}
    (path / "run.json").write_text(json.dumps(info))
    return path


def _rest(path: Path) -> None:
    add(path, *(record("goal_pos", "task_1", i, True) for i in (2, 3)))


def test_a_run_without_a_process_is_stopped_and_says_how_to_resume(cli: Any, run: Path) -> None:
    before = {p: p.read_bytes() for p in run.iterdir()}
    out = cli("watch", run, code=1)
    assert "Stopped: 6 of 8 episodes have a result. The last episode ended " in out
    assert "Rerun its command to resume: apt-bench run --suite x" in out
    assert [line.split() for line in out.splitlines()[1:3]] == [
        ["goal_pos", "2/4", "50"],
        ["goal_pos", "(null)", "2/2", "100"],
    ]
    assert {p: p.read_bytes() for p in run.iterdir()} == before  # it only reads


def test_a_run_that_is_locked_is_running(cli: Any, run: Path) -> None:
    with exclusive(run, "apt-bench run"):
        assert "Running: 6 of 8 episodes" in cli("watch", run, "--once", code=0)
        found = json.loads(cli("watch", run, "--json", code=0))
    assert (found["state"], found["requested"], found["finished"], found["errors"]) == ("running", 8, 6, 0)
    assert found["cells"][0] == {"cell": "goal_pos", "successes": 2, "finished": 4}


def test_it_follows_the_run_to_its_end(cli: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = exclusive(run, "apt-bench run")
    lock.__enter__()
    left = iter([lambda: None, lambda: _rest(run), lambda: lock.__exit__(None, None, None)])
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: next(left)())
    out = cli("watch", run, code=0)
    assert "8/8 done, 6 successes" in out
    assert "Finished: 8 of 8 episodes have a result." in out
    assert next(left, None) is None


def test_an_error_counts_until_a_later_attempt_has_a_result(run: Path) -> None:
    lost = record("goal_pos", "task_1", 2, False, outcome="error", failure=None)
    add(run, lost)
    watched = watch.WatchedRun(RunStore.open(run))
    assert len(watched.read()) == 7
    assert watched.read() == []  # only what is new
    assert (watched.card()["finished"], watched.card()["errors"]) == (6, 1)
    _rest(run)
    with open(run / "episodes.jsonl", "a") as file:
        file.write('{"key": {"suite"')  # being written
    assert len(watched.read()) == 2
    assert (watched.card()["finished"], watched.card()["errors"], watched.state) == (8, 0, "finished")


def test_no_locks_and_no_run(cli: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "is_locked", lambda folder: None)
    assert "so it is unknown whether a process writes" in cli("watch", run, "--once", code=0)
    assert "holds no run" in cli("watch", tmp_path)


def test_looking_at_a_lock_does_not_take_it(tmp_path: Path) -> None:
    assert is_locked(tmp_path) is False
    with exclusive(tmp_path, "a test"):
        assert is_locked(tmp_path) is True
        with pytest.raises(Locked), exclusive(tmp_path, "a test"):
            pass
    assert is_locked(tmp_path) is False
