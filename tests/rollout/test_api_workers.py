"""The Python API with rollout workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

import apt_bench
from apt_bench.suites import load_suite
from tests.rollout.commands import SUITE
from tests.toy import HostedPushPolicy

SCRIPT = """
import sys
import apt_bench
from tests.toy import HostedPushPolicy

address, out = sys.argv[1:]
suite = apt_bench.register_suite("tests/toy_suite.yaml")
apt_bench.evaluate(
    HostedPushPolicy, "toy", "push", episodes=2, workers=2, ray_address=address, out=out, progress=False
)
"""


def test_workers_give_what_one_process_gives(address: str, tmp_path: Path) -> None:
    """The workers import the class. They do not need a suite that is registered only in the calling process."""
    words = [sys.executable, "-c", SCRIPT, address, str(tmp_path / "there")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    there = apt_bench.load_run(tmp_path / "there")
    here = apt_bench.evaluate(
        HostedPushPolicy(), load_suite(SUITE), "push", episodes=2, out=tmp_path / "here", progress=False
    )
    assert there.info["workers"] == 2
    columns = ["task", "init", "outcome", "steps", "end_hash"]
    pd.testing.assert_frame_equal(
        *(run.episodes[columns].sort_values(["task", "init"], ignore_index=True) for run in (here, there))
    )
