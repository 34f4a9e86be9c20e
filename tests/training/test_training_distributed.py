"""Several processes train as one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripted import endless

from apt_bench.training.distributed import run_distributed
from apt_bench.training.metrics import read_metrics
from apt_bench.training.progress import Report
from apt_bench.training.recipe import load_recipe
from apt_bench.training.session import Session
from apt_bench.training.two_stage import run_recipe, stage_checkpoint


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_get_the_weights_that_one_gets(config: Path, cache: Path, tmp_path: Path) -> None:
    """Each takes half of every batch. One process that takes the halves one after the other sees the same noise."""
    over = {"train": {"save_every": 4}, "stage1": {"steps": 4}, "stage2": {"steps": 4}, "vlm_mode": "full"}
    one = load_recipe(str(config), over | {"train": over["train"] | {"micro": 4}})
    run_recipe(one, Session(tmp_path / "one", cache, Report(None)))
    two = Session(tmp_path / "two", cache, Report(None))
    policy = run_distributed(load_recipe(str(config), over), two, workers=2, gpu=False)
    for stage in (1, 2):
        a, b = (
            load_file(stage_checkpoint(tmp_path / n, stage) / "model.safetensors") for n in ("one", "two")
        )
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(
                a[name], b[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
        rows = [[r["loss"] for r in read_metrics(tmp_path / n / f"stage{stage}")] for n in ("one", "two")]
        assert rows[0] == pytest.approx(rows[1], rel=1e-4)
    assert (policy / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_saves_the_step_that_all_workers_are_at(config: Path, cache: Path, tmp_path: Path) -> None:
    command = endless(config, cache, tmp_path / "run", "--workers", "2")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
    metrics = tmp_path / "run" / "stage2" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    saved = stage_checkpoint(tmp_path / "run", 2)
    assert f"Step {int(saved.name[5:])} is saved in {saved}" in out
    assert not (tmp_path / "run" / ".stop").exists()
