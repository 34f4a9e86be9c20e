"""`apt-bench run` end to end on real LIBERO: two tasks in two scenes, two workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from apt_bench.runs.records import RunStore

ROOT = Path(__file__).parents[2]


@pytest.mark.sim
def test_two_tasks_on_two_workers(tmp_path: Path) -> None:
    words = ["--suite", "libero_pro", "--policy", "zero", "--cells", "object_task", "--tasks", "0,1"]
    words += ["--episodes", "1", "--workers", "2", "--save-actions", "--out", str(tmp_path / "ray")]
    command = [sys.executable, "-m", "apt_bench", "run", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    records = RunStore.open(tmp_path / "ray").episodes()
    assert len({r.key for r in records}) == 2
    for record in records:
        assert (record.outcome, record.steps, record.decisions, record.attempt) == ("timeout", 280, 28, 1)
        assert record.failure == "no_contact"
        assert record.prompt_source == "bddl"
        assert record.prompt != record.prompts["file"]
        assert 0 < record.seconds["physics"] < 120

    # The same actions, open loop, in this process: bit for bit the same end.
    words[words.index("zero")] = "replay"
    words[words.index("2")] = "0"
    words[-1] = str(tmp_path / "again")
    command = [
        sys.executable,
        "-m",
        "apt_bench",
        "run",
        *words,
        "--limit",
        "1",
        str(tmp_path / "ray/actions"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    (again,) = RunStore.open(tmp_path / "again").episodes()
    (first,) = (r for r in records if r.key == again.key)
    assert (again.start_hash, again.end_hash) == (first.start_hash, first.end_hash)
