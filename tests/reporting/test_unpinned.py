"""A run on another simulator than the suite's is marked at the top of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apt_bench.analysis.run import Run, load_run
from apt_bench.reporting.coverage import unpinned
from apt_bench.reporting.report import write_report
from tests.runs import write_run

MARK = "defined on mujoco 3.2.3; here the module 'mujoco' is another, from <b>/x</b>: 1 changed (mujoco/a.py)"


def run(tmp_path: Path, marks: Any) -> Run:
    path = write_run(tmp_path / "run", lambda *place: True, {"spatial_task": 1}, tasks=2)
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**info, "unpinned": marks}))
    return load_run(path, "mine")


def test_a_report_begins_with_what_was_not_run_on_the_suites_own_simulator(tmp_path: Path) -> None:
    text = write_report([run(tmp_path, [MARK])], tmp_path / "report").read_text()
    first = text.index("mine was not run on the suite&#39;s own simulator (--unpinned)")
    assert text.index("Read this first") < first < text.index("<li>", first)
    assert "1 changed (mujoco/a.py)" in text
    assert "<b>/x</b>" not in text


@pytest.mark.parametrize("marks", [[], None, "x", {}, 3])
def test_other_runs_are_not_marked(tmp_path: Path, marks: Any) -> None:
    assert list(unpinned([run(tmp_path, marks)])) == []
