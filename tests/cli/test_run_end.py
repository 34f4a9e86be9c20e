"""What `run` prints at its end: average, failures, probes, pace, and the report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from apt_bench.cli import doctor
from apt_bench.cli._run_summary import average, failure_classes
from apt_bench.suites import load_suite
from tests.runs import record

RUN = [
    "run",
    "--suite",
    "tests/toy_suite.yaml",
    "--episodes",
    "2",
    "--workers",
    "0",
    "--policy",
    "tests.toy:PushPolicy",
]
TOY = load_suite("tests/toy_suite.yaml")


def test_the_end_of_a_run(cli: Any, tmp_path: Path) -> None:
    out = cli(*RUN, "--policy-arg", "noise=3.0", "--probe", "null", "--out", tmp_path / "run", code=0)
    rows = [line.split("  ")[0] for line in out.splitlines()[out.splitlines().index(_heading(out)) + 1 :]]
    assert rows[:5] == ["push", "slide", "average of 2 cells", "push (null)", "slide (null)"]
    assert re.search(r"^Time: 24 episodes in \d+ s, [\d.]+ per minute\.$", out, re.M)
    assert f"Next: apt-bench report {tmp_path / 'run'}" in out
    card = json.loads(cli(*RUN, "--policy-arg", "noise=3.0", "--out", tmp_path / "run", "--json", code=0))
    assert card["average"]["cells"] == ["push", "slide"]
    assert card["average"]["low"] <= card["average"]["rate"] <= card["average"]["high"]
    assert sum(card["failures"].values()) == 8 - card["overall"]["successes"]
    assert (card["report"], card["new_episodes"]) == (None, 0)
    assert "Time:" not in cli(*RUN, "--policy-arg", "noise=3.0", "--out", tmp_path / "run", code=0)


def _heading(out: str) -> str:
    return next(line for line in out.splitlines() if line.startswith("cell "))


def test_report_writes_the_page(cli: Any, tmp_path: Path) -> None:
    out = cli(*RUN, "--cells", "push", "--report", "--out", tmp_path / "run", code=0)
    page = tmp_path / "run/report/report.html"
    assert f"Report: {page}" in out
    assert "average" not in out  # one cell
    assert page.is_file()


def test_the_average_needs_complete_headline_cells() -> None:
    done = [record(c, f"t{t}", 0, t == 0, suite="toy") for c in ("push", "slide", "no_gl") for t in range(2)]
    found = average(done, [], TOY)
    assert found
    assert (found[0].value, found[1]) == (0.5, ["push", "slide"])
    assert average(done, [record("slide", "t0", 1, True, suite="toy").key], TOY) is None
    assert average(done[:2], [], TOY) is None
    assert average([], [], TOY) is None


def test_failures_are_counted_by_class_without_probes() -> None:
    records = [record("push", "t", i, i == 0) for i in range(3)]
    records.append(record("push", "t", 3, False, failure=None))
    records.append(record("push", "t", 3, False, prompt_id="null"))
    assert failure_classes(records) == {"no_grasp": 2, "timeout": 1}


def test_quick_doctor_starts_nothing(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> str:
        raise AssertionError

    for name in ("_ray", "_episode"):
        monkeypatch.setattr(doctor, name, forbidden)
    monkeypatch.setattr(doctor, "_rendering", lambda: "fine")
    found = json.loads(cli("doctor", "--quick", "--suite", "tests/toy_suite.yaml", "--json", code=0))
    assert [c["name"] for c in found["checks"]] == ["python", "packages", "rendering", "memory", "disk"]
