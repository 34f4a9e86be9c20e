"""Ctrl-C and SIGTERM: the step is saved, the exit code is 130, and the same command ends at the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apt_bench.core.signals import stop_on_signals
from apt_bench.training.config import load_recipe
from apt_bench.training.progress import Progress, Report, read_metrics
from apt_bench.training.stages import Session, run_recipe, stage_checkpoint


class Interrupting(Report):
    """Sends this process a signal when step `step` of `stage` is done; keeps what was said."""

    def __init__(self, stage: str, step: int, number: int = signal.SIGINT) -> None:
        super().__init__(None)
        self.stage, self.step, self.number, self.said = stage, step, number, []  # type: ignore[var-annotated]

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def bar(self, what: str, total: int, start: int = 0) -> Iterator[Progress]:
        with super().bar(what, total, start) as progress:
            if what == self.stage:
                progress.to = lambda done, note="": (  # type: ignore[method-assign]
                    os.kill(os.getpid(), self.number) if done == self.step else None
                )
            yield progress


@pytest.mark.parametrize(("stage", "step"), [("stage 1", 3), ("stage 2", 5), ("stage 1", 8)])
def test_an_interrupted_stage_is_saved_and_goes_on_to_the_same_bits(
    config: Path, cache: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, stage: str, step: int
) -> None:
    recipe = load_recipe(str(config), {"train": {"save_every": 100}})
    whole = tmp_path_factory.getbasetemp() / "interrupt-whole"
    if not whole.exists():
        run_recipe(recipe, Session(whole, cache, Report(None)))
    report = Interrupting(stage, step)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, Session(tmp_path, cache, report))
    number = 1 if stage == "stage 1" else 2
    stopped = min(step + 1, 8)  # the signal comes within the step after
    saved = stage_checkpoint(tmp_path, number)
    assert json.loads((saved / "training.json").read_text())["step"] in (step, stopped)
    assert any(f"Step {int(saved.name[5:])} is saved in {saved}" in text for text in report.said)
    run_recipe(recipe, Session(tmp_path, cache, Report(None)))
    for n in (1, 2):
        a, b = stage_checkpoint(whole, n), stage_checkpoint(tmp_path, n)
        for name in ("model.safetensors", "optimizer.safetensors"):
            assert (a / name).read_bytes() == (b / name).read_bytes(), (n, name)
        steps = [row["step"] for row in read_metrics(tmp_path / f"stage{n}")]
        assert steps == list(range(1, 9))


def test_a_second_signal_forces() -> None:
    with stop_on_signals() as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_command_ends_with_130_and_says_what_is_kept(
    config: Path, cache: Path, tmp_path: Path
) -> None:
    words = [
        "--config",
        config,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
        "--cache",
        cache,
        "--no-two-stage",
    ]
    words += ["--set", "train.save_every=100000", "--set", "train.eval_every=100000", "--steps", 100_000]
    command = [sys.executable, "-m", "apt_bench.cli", "train", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "stage2" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    saved = stage_checkpoint(tmp_path / "run", 2)
    assert f"one stage: interrupted. Step {int(saved.name[5:])} is saved in {saved}" in out
    assert "Traceback" not in err
    assert "interrupted" in err


def until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if true():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("nothing happened")
