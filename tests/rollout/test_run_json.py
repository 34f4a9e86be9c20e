"""`apt-bench run --json` prints one JSON object on stdout and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from apt_bench.cli._json import print_json
from apt_bench.policies.base import PolicySpec
from apt_bench.rollout.engine import run_local
from tests.rollout.commands import ROOT, SUITE
from tests.toy import PushPolicy

LOUD = "tests.rollout.test_run_json:Loud"
RUN = ["run", "--suite", SUITE, "--workers", "0", "--cells", "push", "--episodes", "2"]


class Loud(PushPolicy):
    """Prints on stdout, from Python and below it."""

    def act(self, observations: Any) -> Any:
        import os

        print("loud")
        os.write(1, b"louder\n")
        return super().act(observations)


def test_a_run_prints_one_object(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "apt_bench", *RUN, "--policy", LOUD, "--json"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["out"], found["policy"]) == (str(tmp_path / "run"), LOUD)
    (cell,) = found["cells"]
    assert cell == {"cell": "push", "prompt": "default"} | found["overall"]
    assert (cell["finished"], cell["requested"], cell["rate"]) == (4, 4, cell["successes"] / 4)
    assert 0 <= cell["low"] <= cell["rate"] <= cell["high"] <= 1
    assert (found["missing"], found["stopped"], found["advice"], found["exit_code"]) == ([], None, None, 0)
    assert "loud\n" in done.stderr
    assert "louder\n" in done.stderr
    assert "4/4 done" in done.stderr


def test_missing_episodes_and_nulls(cli: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def lose(schedule: Any, settings: Any, *_: Any) -> Any:
        for job in iter(lambda: schedule.next(0), None):
            if job.spec.key.task.endswith("left"):
                yield from run_local(_Only(job), settings, lambda: False)

    class _Only:
        def __init__(self, job: Any) -> None:
            self._jobs = [job]

        def next(self, worker: int) -> Any:
            return self._jobs.pop() if self._jobs else None

    monkeypatch.setattr("apt_bench.rollout.runner.run_local", lose)
    words = [*RUN, "--policy", "tests.toy:PushPolicy", "--probe", "null", "--out", tmp_path / "run", "--json"]
    found = json.loads(cli(*words, code=1))
    assert [(c["prompt"], c["finished"], c["requested"]) for c in found["cells"]] == [
        ("default", 2, 4),
        ("null", 2, 4),
        ("repeat", 2, 4),
    ]
    assert (found["overall"]["finished"], found["overall"]["requested"]) == (2, 4)
    assert len(found["missing"]) == 6
    assert all("right" in key for key in found["missing"])
    assert "6 episodes are missing" in found["advice"]
    assert found["exit_code"] == 1


def test_bad_input_prints_nothing_on_stdout(cli: Any) -> None:
    assert "Did you mean" in cli(*RUN, "--policy", "zeero", "--json")


def test_values_are_json(capsys: Any) -> None:
    print_json({"a": float("nan"), "b": [float("inf"), 0.5], "c": PolicySpec, "d": (1,)})
    assert json.loads(capsys.readouterr().out, parse_constant=None) | {"c": ""} == {
        "a": None,
        "b": [None, 0.5],
        "c": "",
        "d": [1],
    }
