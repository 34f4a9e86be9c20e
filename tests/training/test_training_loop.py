"""The loop: what it changes, what it survives, what it refuses."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apt_bench.errors import UserError
from apt_bench.models import checkpoint
from apt_bench.models.vla import VLA, build_expert
from apt_bench.training import saving
from apt_bench.training.config import load_recipe
from apt_bench.training.data import open_samples
from apt_bench.training.features import Batches
from apt_bench.training.progress import Report, read_metrics
from apt_bench.training.stages import Session, open_vlm, run_recipe, stage_checkpoint
from apt_bench.training.trainer import TrainConfig, losses, optimizer, read

ARCHITECTURES = ("apt", "pi", "groot")


def session(out: Path, cache: Path) -> Session:
    return Session(out, cache, Report(None))


def command(config: Path, out: Path, cache: Path, *words: str) -> list[str]:
    main = [sys.executable, "-m", "apt_bench.cli", "train", "--config", str(config), "--device", "cpu"]
    return [*main, "--out", str(out), "--cache", str(cache), *words]


def same_files(a: Path, b: Path) -> bool:
    names = ("model.safetensors", "optimizer.safetensors")
    return all((a / n).read_bytes() == (b / n).read_bytes() for n in names)


def test_a_killed_run_resumes_to_the_same_bits(config: Path, cache: Path, tmp_path: Path) -> None:
    words = ["--vlm-mode", "full", "--set", "stage1.steps=6", "--set", "stage2.steps=40", "--set", "train.save_every=5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(config, whole, cache, *words), check=True, capture_output=True)
    process = subprocess.Popen(command(config, killed, cache, *words), stdout=subprocess.DEVNULL)
    while saving.latest(killed / "stage2") is None:  # until the first checkpoint of Stage 2 is there
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = saving.latest(killed / "stage2")
    assert left is not None
    assert int(left.name[5:]) < 40
    done = subprocess.run(command(config, killed, cache, *words), check=True, capture_output=True, text=True)
    assert "going on after step" in done.stdout
    assert same_files(stage_checkpoint(whole, 2), stage_checkpoint(killed, 2))
    keys = ("step", "loss", "held_out", "grad_norm")
    rows = [[{k: row.get(k) for k in keys} for row in read_metrics(run / "stage2")] for run in (whole, killed)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 40


def test_a_full_disk_costs_no_checkpoint(config: Path, cache: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(config), {"two_stage": False, "stage2": {"steps": 4}})
    run_recipe(recipe, session(tmp_path, cache))
    good = stage_checkpoint(tmp_path, 2)
    before = {p.name: p.read_bytes() for p in good.iterdir()}
    more = load_recipe(str(config), {"two_stage": False, "stage2": {"steps": 8}})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["optimizer.safetensors"]) // 2, limits[1]))
    try:
        with pytest.raises(UserError, match=r"step 8 could not be saved .*step_0000004 is whole. Free some space"):
            run_recipe(more, session(tmp_path, cache))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_bytes() for p in good.iterdir()} == before
    assert [p.name for p in good.parent.iterdir()] == [good.name]
    run_recipe(more, session(tmp_path, cache))  # and the same command goes on
    assert stage_checkpoint(tmp_path, 2).name == "step_0000008"


def test_a_loss_that_is_not_finite_stops_the_run(config: Path, cache: Path, tmp_path: Path) -> None:
    over = {"two_stage": False, "train": {"lr": 1e30, "save_every": 1, "warmup": 0}}
    with pytest.raises(UserError, match=r"not finite at step \d+ \(samples \d+ to \d+\).*lower lr \(now 1e\+30\)"):
        run_recipe(load_recipe(str(config), over), session(tmp_path, cache))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arch": "groot"}, "another architecture: arch is 'apt' there and 'groot' here"),
        ({"train": {"lr": 5e-4}}, "was trained with lr 0.001, this run has 0.0005"),
        ({"seed": 3}, "was trained with seed 0, this run has 3"),
        ({"vlm_mode": "full"}, "was trained with vlm_mode frozen, this run has full"),
    ],
)
def test_a_folder_of_another_run_is_refused(
    config: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory, change: dict, says: str
) -> None:
    out = tmp_path_factory.getbasetemp() / "one-stage"
    base = {"two_stage": False, "stage2": {"steps": 1}}
    if not out.exists():
        run_recipe(load_recipe(str(config), base), session(out, cache))
    with pytest.raises(UserError, match=says):
        run_recipe(load_recipe(str(config), base | change), session(out, cache))


def network(config: Path, cache: Path, **change: object) -> tuple[VLA, Batches]:
    recipe = load_recipe(str(config), change)
    vlm, spec = open_vlm(recipe)
    vlm.set_mode(recipe.vlm_mode)
    torch.manual_seed(0)
    model = VLA(vlm, build_expert(recipe.expert_config(2, vlm.shape)), spec).train()
    for p in model.expert.parameters():  # past the zero-initialised parts, which stop gradients at first
        torch.nn.init.normal_(p, std=0.1)
    samples, _ = open_samples(recipe.data, 8, 0, vlm.image_size, cache)
    return model, Batches(samples, model, 8)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_gradients_reach_exactly_what_the_mode_says(config: Path, cache: Path, arch: str, mode: str) -> None:
    model, batches = network(config, cache, arch=arch, vlm_mode=mode)
    losses(model, *batches[0], "cpu", half=False)["total"].backward()
    reached = {n for n, p in model.vlm.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    if mode == "frozen":
        assert not reached
    elif mode == "lora":
        assert reached
        assert all(".lora_" in name for name in reached)
    else:
        assert {name.split(".")[0] for name in reached} >= {"stem", "word_embed", "layers"}


def test_weight_decay_spares_biases_and_norms(config: Path, cache: Path) -> None:
    model, _ = network(config, cache, vlm_mode="full")
    groups = optimizer(model, TrainConfig()).param_groups
    assert [g["weight_decay"] for g in groups] == [1e-2, 0.0, 1e-10]
    assert [g["lr"] for g in groups] == [1e-4, 1e-4, 1e-5]
    names = {id(p): n for n, p in model.expert.named_parameters()}
    spared = {names[id(p)] for p in groups[1]["params"]}
    assert {n for n in names.values() if n.endswith(".bias")} <= spared
    assert "fusion.gate" not in spared
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_accumulated_gradients_are_those_of_the_whole_batch(config: Path, cache: Path, tmp_path: Path) -> None:
    found = []
    for micro in (0, 2):
        over = {"two_stage": False, "stage2": {"steps": 3}, "train": {"micro": micro}, "cache_features": False}
        policy = run_recipe(load_recipe(str(config), over), session(tmp_path / str(micro), cache))
        found.append(load_file(policy / "model.safetensors"))
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_learning_rate_warms_up_and_then_holds_or_falls() -> None:
    constant = TrainConfig(steps=100, warmup=10)
    assert [constant.rate(s) for s in (0, 4, 9, 50, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    cosine = TrainConfig(steps=110, warmup=10, schedule="cosine")
    assert cosine.rate(60) == pytest.approx(0.5)
    assert cosine.rate(109) < 1e-3


def test_a_checkpoint_says_where_it_comes_from(config: Path, cache: Path, data: Path, tmp_path: Path) -> None:
    policy = run_recipe(load_recipe(str(config), {"stage1": {"steps": 2}, "stage2": {"steps": 2}}), session(tmp_path, cache))
    said = json.loads((policy / "provenance.json").read_text())
    assert said["data"][0]["name"] == str(data)
    assert said["data"][0]["episodes"] == 18
    assert said["step"] == 2
    assert said["inherited"] > 20
    assert said["recipe"]["stage2"]["batch"] == 8
    assert (tmp_path / "stage1" / "loss.png").stat().st_size > 5000
    assert load_recipe(str(tmp_path / "config.yaml")) == load_recipe(
        str(config), {"stage1": {"steps": 2}, "stage2": {"steps": 2}}
    )


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_architecture_overfits_32_samples(config: Path, cache: Path, arch: str) -> None:
    model, batches = network(config, cache, arch=arch, expert={"width": 64})
    torch.manual_seed(0)
    model.expert = build_expert(model.expert.config)
    batches = Batches(batches.samples, model, 32)
    batch, inputs = batches[0]
    features = read(inputs, model, "cpu")
    rule = TrainConfig(steps=1500, lr=2e-3, warmup=20, schedule="cosine", weight_decay=0.0)
    optim, generator = optimizer(model, rule), torch.Generator().manual_seed(0)
    for step in range(rule.steps):
        for group in optim.param_groups:
            group["lr"] = group["full_lr"] * rule.rate(step)
        model.expert.loss(features, batch.robot, batch.target, generator=generator)["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.expert.parameters(), 1.0)
        optim.step()
        optim.zero_grad()
    noise = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(1))
    error = (model.expert.sample(features, batch.robot, noise) - batch.target)[..., :3].norm(dim=-1)
    assert float(error.mean()) < 0.005  # metres


def test_a_checkpoint_is_a_policy(config: Path, cache: Path, tmp_path: Path) -> None:
    over = {"stage1": {"steps": 1}, "stage2": {"steps": 1}}
    policy = run_recipe(load_recipe(str(config), over), session(tmp_path, cache))
    moved = tmp_path / "moved"
    shutil.copytree(policy, moved)
    model = checkpoint.load(moved)
    assert not model.blind
    assert checkpoint.load(stage_checkpoint(tmp_path, 1)).blind
    assert os.readlink(tmp_path / "policy") == "stage2/checkpoints/step_0000001"
