"""The training loop: what it changes, which faults it recovers from, and which input it refuses."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from apt_bench.core.errors import UserError
from apt_bench.models import checkpoint
from apt_bench.models.vla import VLA, build_expert
from apt_bench.training.config import TrainConfig
from apt_bench.training.metrics import read_metrics
from apt_bench.training.muon import Muon, orthogonal
from apt_bench.training.progress import Progress, Report
from apt_bench.training.recipe import load_recipe
from apt_bench.training.samples.batches import Batches
from apt_bench.training.samples.stream import open_samples
from apt_bench.training.session import Session
from apt_bench.training.trainer import losses, optimizers
from apt_bench.training.two_stage import open_vlm, run_recipe, stage_checkpoint

ARCHITECTURES = ("apt", "pi", "groot")


def session(out: Path, cache: Path) -> Session:
    return Session(out, cache, Report(None))


def same_files(a: Path, b: Path) -> bool:
    names = ("model.safetensors", "optimizer.safetensors")
    return all((a / n).read_bytes() == (b / n).read_bytes() for n in names)


class Killer(Report):
    """Kills its own process, without a chance to clean up, when this step of Stage 2 is done."""

    def __init__(self, step: int) -> None:
        super().__init__(None)
        self.step = step

    @contextmanager
    def bar(self, what: str, total: int, start: int = 0) -> Iterator[Progress]:
        with super().bar(what, total, start) as progress:
            if what == "stage 2":
                progress.to = lambda done, note="": (
                    os.kill(os.getpid(), signal.SIGKILL) if done == self.step else None
                )
            yield progress


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_resumes_to_the_same_bits(
    config: Path, cache: Path, tmp_path: Path, optimizer: str
) -> None:
    recipe = load_recipe(
        str(config),
        {
            "vlm_mode": "full",
            "train": {"save_every": 3, "optimizer": optimizer},
            "stage1": {"steps": 3},
            "stage2": {"steps": 9},
        },
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_recipe(recipe, session(whole, cache))
    process = multiprocessing.get_context("fork").Process(
        target=run_recipe, args=(recipe, Session(killed, cache, Killer(step=7)))
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert stage_checkpoint(killed, 2).name == "step_0000006"
    run_recipe(recipe, session(killed, cache))
    assert same_files(stage_checkpoint(whole, 2), stage_checkpoint(killed, 2))
    keys = ("step", "loss", "held_out", "grad_norm")
    rows = [
        [{k: row.get(k) for k in keys} for row in read_metrics(run / "stage2")] for run in (whole, killed)
    ]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(1, 10))


def test_a_full_disk_costs_no_checkpoint(config: Path, cache: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(config), {"two_stage": False, "stage2": {"steps": 4}})
    run_recipe(recipe, session(tmp_path, cache))
    good = stage_checkpoint(tmp_path, 2)
    before = {p.name: p.read_bytes() for p in good.iterdir()}
    more = load_recipe(str(config), {"two_stage": False, "stage2": {"steps": 8}})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["optimizer.safetensors"]) // 2, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"step 8 could not be saved .*step_0000004 is intact. Free some space"
        ):
            run_recipe(more, session(tmp_path, cache))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_bytes() for p in good.iterdir()} == before
    assert [p.name for p in good.parent.iterdir()] == [good.name]
    run_recipe(more, session(tmp_path, cache))  # and the same command goes on
    assert stage_checkpoint(tmp_path, 2).name == "step_0000008"


def test_a_loss_that_is_not_finite_stops_the_run(config: Path, cache: Path, tmp_path: Path) -> None:
    over = {"two_stage": False, "train": {"lr": 1e30, "save_every": 1, "warmup": 0}}
    with pytest.raises(
        UserError, match=r"not finite at step \d+ \(samples \d+ to \d+\).*lower lr \(now 1e\+30\)"
    ):
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
    losses(model, *batches[0], TrainConfig())["total"].backward()
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
    (adamw,) = optimizers(model, TrainConfig())
    groups = adamw.param_groups
    assert [g["weight_decay"] for g in groups] == [1e-2, 0.0, 1e-10]
    assert [g["lr"] for g in groups] == [1e-4, 1e-4, 1e-5]
    names = {id(p): n for n, p in model.expert.named_parameters()}
    spared = {names[id(p)] for p in groups[1]["params"]}
    assert {n for n in names.values() if n.endswith(".bias")} <= spared
    assert "fusion.gate" not in spared
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_muon_trains_the_matrices_of_blocks_and_nothing_else(config: Path, cache: Path) -> None:
    model, _ = network(config, cache, vlm_mode="full")
    adamw, muon = optimizers(model, TrainConfig(optimizer="muon"))
    names = {id(p): n for n, p in model.named_parameters()}
    chosen = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    assert {"expert.blocks.0.attn.qkv.weight", "vlm.layers.1.ffn.up_proj.weight"} <= chosen
    assert all(n.endswith(".weight") and "norm" not in n for n in chosen)
    assert {g["lr"] for g in muon.param_groups} == {1e-4, 1e-5}
    everything = [id(p) for o in (adamw, muon) for g in o.param_groups for p in g["params"]]
    assert sorted(everything) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_muon_steps_are_nearly_orthogonal_and_as_large_as_adamws(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    spectrum = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert spectrum.min() > 0.5
    assert spectrum.max() < 1.3
    p = torch.nn.Parameter(torch.zeros(256, 256))
    p.grad = torch.randn(256, 256)
    Muon([p], lr=0.1).step()
    assert (
        0.015 < p.square().mean().sqrt() < 0.025
    )  # AdamW moves each weight by about 0.2 lr (arXiv 2502.16982)


def test_learning_rate_warms_up_and_then_holds_or_falls() -> None:
    constant = TrainConfig(steps=100, warmup=10)
    assert [constant.rate(s) for s in (0, 4, 9, 50, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    cosine = TrainConfig(steps=110, warmup=10, schedule="cosine")
    assert cosine.rate(60) == pytest.approx(0.5)
    assert cosine.rate(109) < 1e-3


def test_a_checkpoint_says_where_it_comes_from(config: Path, cache: Path, data: Path, tmp_path: Path) -> None:
    policy = run_recipe(
        load_recipe(str(config), {"stage1": {"steps": 2}, "stage2": {"steps": 2}}), session(tmp_path, cache)
    )
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


def test_a_checkpoint_is_a_policy(config: Path, cache: Path, tmp_path: Path) -> None:
    over = {"stage1": {"steps": 1}, "stage2": {"steps": 1}}
    policy = run_recipe(load_recipe(str(config), over), session(tmp_path, cache))
    moved = tmp_path / "moved"
    shutil.copytree(policy, moved)
    model = checkpoint.load(moved)
    assert not model.blind
    assert checkpoint.load(stage_checkpoint(tmp_path, 1)).blind
    assert os.readlink(tmp_path / "policy") == "stage2/checkpoints/step_0000001"
