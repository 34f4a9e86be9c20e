"""`apt-bench run` as a process, and the results that tests compare."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from apt_bench.runs.records import EpisodeRecord, RunStore

ROOT = Path(__file__).parents[2]
SUITE = "tests/toy_suite.yaml"
Results = dict[str, tuple[object, ...]]


def results(out: Path) -> Results:
    """Results that must not depend on workers, order or restarts. A key that was recorded twice fails the test."""
    records = [EpisodeRecord.from_json(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    final = [r for r in records if r.outcome != "error"]
    assert len({r.key for r in final}) == len(final), "an episode was recorded twice"
    return {r.key.id: (r.outcome, r.steps, r.decisions, r.start_hash, r.end_hash) for r in final}


class Command:
    """`apt-bench run` on the toy suite in a process of its own."""

    def __init__(self, out: Path, *words: str, policy: str = "tests.toy:PushPolicy") -> None:
        self.out = out
        self._words = [sys.executable, "-m", "apt_bench", "run", "--suite", SUITE]
        self._words += ["--policy", policy, "--out", str(out), *words]

    def start(self) -> subprocess.Popen[str]:
        """Start it in a process group of its own, as a shell does."""
        return subprocess.Popen(
            self._words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, expect: int = 0) -> str:
        """Run it to its end. Returns stderr."""
        done = subprocess.run(self._words, capture_output=True, text=True, timeout=300)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stderr

    def wait_for(self, episodes: int, process: subprocess.Popen[str]) -> None:
        """Wait until this many episodes are recorded."""
        path = self.out / "episodes.jsonl"
        until(lambda: path.exists() and path.read_bytes().count(b"\n") >= episodes, process)


def until(
    condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 240
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def actors(name: str) -> list[psutil.Process]:
    """Ray actors of this class among the descendants of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"ray::{name}" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def records(out: Path) -> list[EpisodeRecord]:
    return RunStore.open(out).episodes()
