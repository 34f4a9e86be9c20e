"""`--track`: with the real packages where they are installed."""

from __future__ import annotations

import importlib.util
import sqlite3
from pathlib import Path

import pytest
from rich.console import Console

from apt_bench.core import tracking
from apt_bench.core.errors import UserError
from apt_bench.rollout.runner import RunOptions, RunResult, run


def toy(out: Path, **more: object) -> RunResult:
    options = RunOptions.of(
        suite="tests/toy_suite.yaml",
        policy="tests.toy:PushPolicy",
        cells=("push",),
        workers="0",
        out=out,
        **more,
    )
    with open("/dev/null", "w") as nowhere:
        return run(options, Console(file=nowhere))


def test_a_missing_package_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'apt-bench\[wandb\]'"):
        toy(tmp_path / "run", track="wandb")
    with pytest.raises(UserError, match="Did you mean 'wandb'"):
        toy(tmp_path / "run", track="wanbd")
    assert not (tmp_path / "run").exists()


def test_a_failing_tracker_is_told_once_and_costs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tracker = tracking.Tracker(tracking)  # a module without `log`
    tracker.log({"a": 1})
    tracker.log({"a": 2})
    tracker.finish()
    assert capsys.readouterr().err.count("is not used any more") == 1


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is optional")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged: list[dict[str, object]] = []
    real = wandb.init

    def init(**words: object) -> object:
        started = real(**words)
        log = wandb.log
        monkeypatch.setattr(wandb, "log", lambda values: (logged.append(values), log(values)))
        return started

    monkeypatch.setattr(wandb, "init", init)
    done = toy(tmp_path / "run", episodes=2, track="wandb")
    assert len(done.records) == 4
    assert [v["episodes/push"] for v in logged[:-1]] == [1, 2, 3, 4]
    wins = sum(r.outcome == "success" for r in done.records)
    assert logged[-2]["success/push"] == wins / 4
    assert [row[:3] for row in logged[-1]["cells"].data] == [["push", wins, 4]]  # type: ignore[attr-defined]
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    raw = file.read_bytes()
    assert b"success/push" in raw
    assert b"control_hz" in raw  # the protocol is in the configuration


@pytest.mark.skipif(not importlib.util.find_spec("trackio"), reason="trackio is optional")
def test_trackio_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("TRACKIO_PROJECT", "toy")
    done = toy(tmp_path / "run", episodes=2, track="trackio")
    assert len(done.records) == 4
    (path,) = (tmp_path / "trackio").rglob("toy*.db")
    with sqlite3.connect(path) as base:
        names = base.execute("select name from sqlite_master where type='table'").fetchall()
        text = "\n".join(str(row) for (name,) in names for row in base.execute(f'select * from "{name}"'))
    assert "success/push" in text
    assert "control_hz" in text
