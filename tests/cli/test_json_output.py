"""`--json`: one JSON object on stdout, of the same values as the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apt_bench.cli import doctor


@pytest.fixture
def runs(cli: Any, tmp_path: Path) -> tuple[Path, Path]:
    """Two finished runs of the toy suite."""
    words = ["run", "--suite", "tests/toy_suite.yaml", "--cells", "push", "--episodes", "3", "--workers", "0"]
    for name, noise in (("a", "0.1"), ("b", "3.0")):
        policy = ["--policy", "tests.toy:PushPolicy", "--policy-arg", f"noise={noise}"]
        cli(*words, *policy, "--out", tmp_path / name, code=0)
    return tmp_path / "a", tmp_path / "b"


def test_compare_and_check(cli: Any, runs: tuple[Path, Path]) -> None:
    a, b = runs
    found = json.loads(cli("compare", a, b, "--json", code=0))
    assert (found["overall"]["n_a"], found["overall"]["paired"]) == (6, True)
    low, high = found["overall"]["difference"]["low"], found["overall"]["difference"]["high"]
    assert -1 <= low <= found["overall"]["rate_a"] - found["overall"]["rate_b"] <= high <= 1
    assert len(found["cells"]) == 1
    assert found["cells"][0]["verdict"] in ("undecided", "A better", "B better")
    assert len(found["tasks"]) == 2
    found = json.loads(cli("check", a, "--against", b, "--json", code=3))
    assert (found["verdict"], found["exit_code"], found["overall"]["pairs"]) == ("inconclusive", 3, 6)
    assert found["reasons"]


def test_ls(cli: Any, runs: tuple[Path, Path]) -> None:
    found = json.loads(cli("ls", "runs", "--path", runs[0].parent, "--json", code=0))["runs"]
    assert [r["run"] for r in found] == list(map(str, runs))
    assert [(r["episodes"], r["requested"], r["errors"], r["probed"]) for r in found] == [(6, 6, 0, 0)] * 2
    assert all(isinstance(r["successes"], int) for r in found)
    cells = json.loads(cli("ls", "cells", "--suite", "tests/toy_suite.yaml", "--json", code=0))["cells"]
    assert {c["cell"] for c in cells} >= {"push", "slide"}
    assert all(isinstance(c["headline"], bool) and isinstance(c["steps"], int) for c in cells)
    for kind in ("suites", "tasks", "policies"):
        assert json.loads(cli("ls", kind, "--json", code=0))[kind]


def test_doctor(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        print("noise on stdout")
        raise OSError("no display")

    for name in ("_memory", "_disk", "_ray"):
        monkeypatch.setattr(doctor, name, lambda: "fine")
    monkeypatch.setattr(doctor, "_packages", lambda suite: "fine")
    monkeypatch.setattr(doctor, "_episode", lambda suite: "fine")
    monkeypatch.setattr(doctor, "_rendering", broken)
    found = json.loads(cli("doctor", "--json", code=1))
    assert found["exit_code"] == 1
    assert [c["name"] for c in found["checks"] if not c["ok"]] == ["rendering"]
    assert "no display" in next(c["message"] for c in found["checks"] if not c["ok"])
