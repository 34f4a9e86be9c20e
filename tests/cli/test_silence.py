"""On a terminal, no command works for long without output.

The tests measure CPU seconds, because a busy machine makes every pause longer.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
import yaml

from tests.cli.terminal import ROOT, in_terminal
from tests.clock import in_time
from tests.runs import write_run

pytestmark = pytest.mark.medium

LONGEST = 3.0
"""CPU seconds between two pieces of output, at most."""

RECORDS = 20_000
"""Records of each large run."""

TOY = ["--suite", "tests/toy_suite.yaml", "--policy", "tests.toy:PushPolicy"]


def cpu_seconds(process: int) -> float:
    """CPU seconds of a process and all its descendants."""
    try:
        found = [psutil.Process(process)]
        found += found[0].children(recursive=True)
    except psutil.NoSuchProcess:
        return 0.0
    total = 0.0
    for one in found:
        try:
            total += sum(one.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def pauses(*commands: list[object], stop_at: bytes = b"") -> tuple[list[tuple[float, bytes]], str]:
    """The CPU seconds before each piece of the output and the piece before it; and the whole output.

    stop_at: text after which Ctrl-C is pressed.
    """
    found: list[tuple[float, bytes]] = []
    before, last, waiting = 0.0, b"", bool(stop_at)

    def heard(process: int, block: bytes) -> None:
        nonlocal before, last, waiting
        now = cpu_seconds(process)
        found.append((now - before, last))
        before, last = now, block
        if waiting and stop_at in block:
            waiting = False
            os.kill(process, signal.SIGINT)

    said = in_terminal(commands, heard=heard)
    return found, said


def silent(found: list[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """The pauses that are too long."""
    return [(seconds, after) for seconds, after in found if not in_time(seconds, LONGEST)]


def test_no_step_is_silent(tmp_path: Path) -> None:
    run = tmp_path / "run"
    found, said = pauses(
        ["run", *TOY, "--episodes", "2", "--workers", "0", "--out", run],
        ["run", "--suite", "libero_pro", "--policy", "zero", "--dry-run"],
        ["ls", "tasks"],
        ["probe", *TOY, "--episodes", "1"],
        ["report", run, "--out", tmp_path / "report"],
        ["doctor", "--quick"],
    )
    assert "exit code 2" not in said
    assert "internal error" not in said
    assert silent(found) == []


def test_the_quick_check_is_quick() -> None:
    found, said = pauses(["doctor", "--quick"])
    assert "rendering" in said
    assert in_time(sum(seconds for seconds, _ in found), 10)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two large runs, `a` and `b`."""
    folder = tmp_path_factory.mktemp("large")
    for number, name in enumerate("ab"):
        cells = dict.fromkeys(("object_pos", "spatial_task"), RECORDS // 20)
        write_run(folder / name, lambda c, t, i, n=number: (i + n) % 3 == 0, cells)
    return folder


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["compare", "{}/a", "{}/b", "--out", "{}/compared"],
            ["run 2 of 2", "Matching", "Drawing", "Overall"],
        ),
        (["check", "{}/a", "--against", "{}/b"], ["run 2 of 2", "Matching", "Verdict:"]),
        (["ls", "runs", "--path", "{}"], ["run 2 of 2", "20000/20000"]),
        (["watch", "{}/a", "--once"], ["Reading the run", "20000 of 20000 episodes have a result"]),
        (["view", "{}/a", "{}/b", "--port", "0"], ["run 2 of 2", "Press Ctrl-C to stop."]),
    ],
    ids=["compare", "check", "ls", "watch", "view"],
)
def test_large_runs_are_not_silent(large: Path, words: list[str], says: list[str]) -> None:
    found, said = pauses([word.format(large) for word in words], stop_at=b"Press Ctrl-C")
    assert [part for part in says if part not in said] == []
    assert silent(found) == []


def test_two_workers_are_not_silent(tmp_path: Path) -> None:
    found, said = pauses(["run", *TOY, "--episodes", "4", "--workers", "2", "--out", tmp_path / "run"])
    assert "Starting Ray" in said
    assert "Next: apt-bench report" in said
    assert silent(found) == []


def test_collecting_is_not_silent(tmp_path: Path) -> None:
    words = [*TOY, "--cells", "push", "--episodes", "4", "--workers", "0", "--size", "64"]
    found, said = pauses(["collect", *words, "--cameras", "agentview", "--out", tmp_path / "demos"])
    assert "demonstrations" in said
    assert silent(found) == []


@pytest.mark.parametrize("suite", ["libero_pro", "rigid_pick_place"])
def test_the_checks_of_a_suite_are_not_silent(suite: str) -> None:
    found, said = pauses(["validate", "--suite", suite])
    assert f"{suite}: " in said
    assert silent(found) == []


@pytest.mark.slow
@pytest.mark.sim
def test_the_checks_of_initial_states_are_not_silent() -> None:
    found, said = pauses(["validate", "--suite", "rigid_pick_place", "--premises"])
    assert "Checking so: initial state" in said
    assert "ok: so: premise" in said
    assert silent(found) == []


@pytest.mark.slow
@pytest.mark.sim
def test_a_training_is_not_silent(tmp_path: Path) -> None:
    """The whole `mini` configuration in toy size: demonstrations, the mini VLM, features, two stages, evaluation."""
    shipped = ROOT / "apt_bench" / "training" / "configs" / "mini.yaml"
    toy = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    steps = {"steps": 4, "batch": 4, "warmup": 1, "log_every": 1, "save_every": 2}
    toy["collect"] |= {"episodes": 2, "limit": 4, "size": 64}
    toy["evaluate"] |= {"cells": ["so"], "episodes": 1, "limit": 1}
    toy["vlm"]["mini"] = {"width": 32, "heads": 2, "layers": 2, "image_size": [64, 64]}
    toy["expert"] |= {"width": 32, "heads": 2, "apt": {"depth": 2, "taps": [1, 1]}}
    toy["data"]["held_out"] = 0.25
    toy["train"] |= {k: v for k, v in steps.items() if k != "steps"} | {"eval_every": 2, "eval_samples": 4}
    toy |= {"stage1": {"steps": 4}, "stage2": {"steps": 4}}
    toy["pretrain"] = {"scenes": 24, "held_out": 4, "sentences": 2, "train": steps}
    config = tmp_path / "toy.yaml"
    config.write_text(yaml.safe_dump(toy), encoding="utf-8")
    folders = ["--out", tmp_path / "run", "--cache", tmp_path / "cache"]
    found, said = pauses(["train", "--config", config, "--device", "cpu", *folders])
    for part in ("Demonstrations of", "Pretraining a mini VLM", "VLM features", "stage 2", "Policy: "):
        assert part in said
    assert silent(found) == []


@pytest.mark.sim
def test_an_episode_in_the_simulator_is_not_silent(tmp_path: Path) -> None:
    words = ["--suite", "rigid_pick_place", "--policy", "zero", "--cells", "so", "--limit", "1"]
    found, said = pauses(["run", *words, "--workers", "0", "--out", tmp_path / "run"])
    assert "Next: apt-bench report" in said
    assert silent(found) == []
