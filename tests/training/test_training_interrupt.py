"""Ctrl-C and SIGTERM: the step is saved, the exit code is 130, and the same command ends at the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import endless
from test_training_pretrain import SIZES, pictures

from apt_bench.core.errors import UserError
from apt_bench.core.signals import stop_on_signals
from apt_bench.core.text import plain_console
from apt_bench.demos.collect import Collected
from apt_bench.rollout.runner import RunResult
from apt_bench.training import inputs
from apt_bench.training.config import OBSERVATIONS_PER_SCENE, PretrainConfig, TrainConfig
from apt_bench.training.metrics import read_metrics
from apt_bench.training.progress import Progress, Report
from apt_bench.training.recipe import load_recipe
from apt_bench.training.session import Session
from apt_bench.training.two_stage import run_recipe, stage_checkpoint
from apt_bench.training.vlm_pretraining.loop import new_mini, pretrain

pytestmark = pytest.mark.medium


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
    command = endless(config, cache, tmp_path / "run")
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


def test_an_interrupted_pretraining_is_saved_and_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = pictures(4 * OBSERVATIONS_PER_SCENE)
    monkeypatch.setattr("apt_bench.training.vlm_pretraining.loop.open_scene_images", lambda *_: shown)
    rule = TrainConfig(steps=4, batch=4, warmup=1, lr=1e-3, log_every=1, save_every=100)
    settings = PretrainConfig(scenes=4, held_out=1, sentences=3, train=rule)
    whole, again = new_mini(SIZES, settings), new_mini(SIZES, settings)
    pretrain(whole, settings, tmp_path / "whole", Report(None))
    report = Interrupting("mini VLM", 2)
    with pytest.raises(KeyboardInterrupt):
        pretrain(new_mini(SIZES, settings), settings, tmp_path / "stopped", report)
    assert "interrupted. Step 3 is saved" in report.said[-1]
    content = (tmp_path / "stopped" / "state.safetensors").read_bytes()
    (tmp_path / "stopped" / "state.safetensors").write_bytes(
        content[:-9] + bytes([content[-9] ^ 2]) + content[-8:]
    )
    with pytest.raises(UserError, match="is damaged: its digest is wrong"):
        pretrain(again, settings, tmp_path / "stopped", Report(None))
    (tmp_path / "stopped" / "state.safetensors").write_bytes(content)
    pretrain(again, settings, tmp_path / "stopped", Report(None))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert [row["step"] for row in read_metrics(tmp_path / "stopped")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("stopped", "message", "successes", "error", "says"),
    [
        ("interrupted", "", 3, KeyboardInterrupt, None),
        ("disk", "No space left on device: x", 3, UserError, "stopped: No space left on device: x"),
        ("errors", "", 3, UserError, "stopped: errors"),
        ("", "", 0, UserError, "None of 0 episodes of rigid_pick_place ended in success"),
    ],
)
def test_a_collection_that_does_not_end_well_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: Any,
    message: str,
    successes: int,
    error: Any,
    says: str,
) -> None:
    result = RunResult(tmp_path, (), (), stopped, message)
    found = Collected(result, successes, successes, 100, 1.0)
    monkeypatch.setattr(inputs, "collect", lambda *_, **__: found)
    with pytest.raises(error, match=says):
        inputs.complete_recipe(
            load_recipe("mini"), Session(tmp_path, tmp_path, Report(None)), plain_console()
        )
