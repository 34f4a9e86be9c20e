"""Recipes: the meaning of the settings, and the command line."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apt_bench.cli import main
from apt_bench.core.errors import UserError
from apt_bench.models import checkpoint
from apt_bench.models.action_expert import inherit
from apt_bench.models.config import VLMShape
from apt_bench.models.vla import build_expert
from apt_bench.training.metrics import read_metrics
from apt_bench.training.progress import Report
from apt_bench.training.recipe import config_names, load_recipe, recipe_parts
from apt_bench.training.session import Session
from apt_bench.training.two_stage import check_start, run_recipe, stage_checkpoint
from apt_bench.training.vlm_pretraining.weights import has_mini

SHAPE = VLMShape(width=32, layers=2, kv_heads=2, head_dim=16, rope_theta=None)


def test_shipped_configurations_build_for_every_architecture() -> None:
    full = VLMShape()
    for name in (part for config in config_names() for part in recipe_parts(config)):
        for arch in ("apt", "pi", "groot"):
            recipe = load_recipe(name, {"arch": arch})
            shape = full if "qwen" in name else VLMShape(128, 4, 4, 32, None)
            one, two = (recipe.expert_config(stage, shape) for stage in (1, 2))
            assert (one.arch, one.stage, two.stage) == (arch, 1, 2)
            assert one.horizon == (32 if "qwen" in name else 16)
    released = load_recipe("qwen3vl-2b").expert_config(2, full)
    assert (released.width, released.depth, released.prediction, released.step_index) == (
        768,
        10,
        "noise",
        False,
    )


def test_a_configuration_extends_a_shipped_one(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: mini-libero-object\ntrain: {lr: 0.1}\npretrain: {cells: [spatial]}\n")
    found, base = load_recipe(str(own)), load_recipe("mini-libero-object")
    assert (found.stage1.lr, found.stage2.lr, found.stage1.batch) == (0.1, base.stage2.lr, base.stage1.batch)
    assert found.pretrain == dataclasses.replace(base.pretrain, cells=("spatial",))
    assert (found.collect, found.data) == (base.collect, base.data)
    assert load_recipe("mini-libero-object").expert == load_recipe("mini").expert | {"plane": 0.04}
    for wrong in ("nothing", "own.yaml", "[mini]", "3"):
        own.write_text(f"extends: {wrong}\n")
        with pytest.raises(UserError, match="extends must name one of mini, "):
            load_recipe(str(own))


def test_budgets_of_the_one_stage_controls() -> None:
    over = {"stage1": {"steps": 30}, "stage2": {"steps": 20}}
    assert load_recipe("mini", over).joint.steps == 20
    assert load_recipe("mini", over | {"two_stage": False}).joint.steps == 20
    assert load_recipe("mini", over | {"two_stage": False, "budget": "total"}).joint.steps == 50


@pytest.mark.parametrize("what", ["all", "blocks"])
def test_stage_two_starts_from_the_prior(config: Path, cache: Path, tmp_path: Path, what: str) -> None:
    """With a learning rate of zero Stage 2 keeps what it inherited, and the rest is as it would be from scratch."""
    over = {
        "inherit": what,
        "stage1": {"steps": 2, "lr": 0.05},
        "stage2": {"steps": 1, "lr": 0.0, "weight_decay": 0.0},
    }
    run_recipe(load_recipe(str(config), over), Session(tmp_path, cache, Report(None)))
    one = load_file(stage_checkpoint(tmp_path, 1) / "model.safetensors")
    two = load_file(stage_checkpoint(tmp_path, 2) / "model.safetensors")
    assert torch.equal(two["expert.blocks.1.attn.qkv.weight"], one["expert.blocks.0.attn.qkv.weight"])
    assert not torch.equal(two["expert.blocks.0.attn.qkv.weight"], one["expert.blocks.0.attn.qkv.weight"])
    same = torch.equal(two["expert.embed.weight"], one["expert.embed.weight"])
    assert same == (what == "all")


@pytest.mark.parametrize("arch", ["pi", "groot"])
def test_the_rivals_insert_no_blocks(arch: str) -> None:
    recipe = load_recipe("mini", {"arch": arch, "expert": {"width": 32, "heads": 2, "groot": {"depth": 2}}})
    one, two = (build_expert(recipe.expert_config(stage, SHAPE)) for stage in (1, 2))
    assert len(inherit(one, two)) == len(one.state_dict()) == len(two.state_dict())


def test_langforce_trains_into_a_policy(config: Path, cache: Path, tmp_path: Path) -> None:
    over = {"recipe": "langforce", "vlm": {"queries": 4}, "stage2": {"steps": 4}}
    policy = run_recipe(load_recipe(str(config), over), Session(tmp_path, cache, Report(None)))
    model = checkpoint.load(policy)
    assert model.vlm.queries is not None
    assert model.vlm.queries.shape == (4, 32)
    assert model.expert.config.arch == "groot"
    rows = read_metrics(tmp_path / "stage2")
    assert all({"llr", "position", "grad_norm"} <= set(row) for row in rows)
    assert not (tmp_path / "stage1").exists()


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"ki": True, "vlm_mode": "full"}, "Choose one"),
        ({"arch": "atp"}, "must be one of apt, pi, groot"),
        ({"stage1": {"step": 3}}, "mini.yaml: stage1: unknown key 'step'. Did you mean 'steps'"),
        ({"train": {"lr": "fast"}}, "lr is 'fast'; it must be a number"),
        ({"expert": {"widht": 3}}, "unknown key 'widht'"),
        ({"train": {"batch": 10, "micro": 4}}, "batch 10 is not a multiple of micro 4"),
        ({"data": {"weights": [1.0]}}, "one positive number for each of 0 datasets"),
        ({"two_stage": False, "prior": "x"}, "one-stage run"),
        ({"start": "mini", "prior": "x"}, "Choose one"),
        ({"start": "mini", "vlm_weights": "libero_goal"}, "Leave out --vlm"),
        ({"recipe": "langforce", "two_stage": True}, "this run is groot, two stages, VLM full"),
        ({"recipe": "langforce", "vlm_mode": "frozen"}, "LangForce trains the VLM"),
        ({"vlm": {"queries": 8}}, "vlm.queries is 8, recipe is plain"),
    ],
)
def test_bad_settings_are_named(over: dict, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        load_recipe("mini", over).expert_config(2, VLMShape(128, 4, 4, 32, None))


def test_a_prior_of_another_architecture_is_refused(config: Path, cache: Path, tmp_path: Path) -> None:
    over = {"stage1": {"steps": 1}, "stage2": {"steps": 1}}
    run_recipe(load_recipe(str(config), over), Session(tmp_path / "a", cache, Report(None)))
    prior = stage_checkpoint(tmp_path / "a", 1)
    other = load_recipe(str(config), over | {"arch": "groot", "prior": str(prior)})
    with pytest.raises(UserError, match=r"is apt, stage 1, .* this run needs groot, stage 1"):
        run_recipe(other, Session(tmp_path / "b", cache, Report(None)))
    policy = stage_checkpoint(tmp_path / "a", 2)
    again = load_recipe(str(config), over | {"prior": str(policy)})
    with pytest.raises(UserError, match="is apt, stage 2"):
        run_recipe(again, Session(tmp_path / "c", cache, Report(None)))


def test_finetuning_starts_from_the_whole_policy(config: Path, cache: Path, tmp_path: Path) -> None:
    """Also with a VLM of other weights than the configuration's, as a shipped policy has."""
    short = {"stage1": {"steps": 1}, "stage2": {"steps": 2, "lr": 0.05, "vlm_lr": 0.05}, "vlm_mode": "full"}
    first = run_recipe(load_recipe(str(config), short), Session(tmp_path / "a", cache, Report(None)))
    still = {"stage2": {"steps": 1, "lr": 0.0, "weight_decay": 0.0}, "start": str(first)}
    recipe = load_recipe(str(config), still)
    again = run_recipe(recipe, Session(tmp_path / "b", cache, Report(None)))
    before, after = (load_file(policy / "model.safetensors") for policy in (first, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "b/stage1").exists()
    assert checkpoint.provenance(again)["recipe"]["start"] == str(first)
    mini = load_recipe(str(config), still | {"start": "", "vlm_weights": str(first), "two_stage": False})
    alone = run_recipe(mini, Session(tmp_path / "d", cache, Report(None)))  # only its VLM
    theirs = load_file(alone / "model.safetensors")
    same = {name for name in before if torch.equal(before[name], theirs[name])}
    assert {name for name in before if name.startswith("vlm.")} <= same
    assert "expert.embed.weight" not in same
    assert has_mini(first)
    assert has_mini("libero_goal")
    assert not has_mini(tmp_path)
    hub = tmp_path / "hub"  # a checkpoint without digests, whose VLM is one of the hub and was trained
    shutil.copytree(first, hub, ignore=shutil.ignore_patterns("digests.json"))
    saved = json.loads((hub / "config.json").read_text())
    saved["vlm"] |= {"name": "owner/vlm", "mode": "lora"}
    (hub / "config.json").write_text(json.dumps(saved))
    for mode in ("frozen", "lora"):
        lost = still | {"start": str(hub), "vlm": {"name": "owner/vlm"}, "vlm_mode": mode}
        with pytest.raises(UserError, match=r"would not store it\. Give --vlm-mode full"):
            check_start(load_recipe(str(config), lost))
    with pytest.raises(UserError, match=r"is a file\. Give the folder"):
        check_start(load_recipe(str(config), still | {"start": str(first / "model.safetensors")}))
    for other, says in (
        ({"two_stage": False}, "two_stage True (here False)"),
        ({"arch": "groot", "expert": {"groot": {"depth": 2}}}, "arch 'apt' (here 'groot')"),
    ):
        wrong = load_recipe(str(config), still | other)
        with pytest.raises(UserError, match=re.escape(says)):
            check_start(wrong)
        with pytest.raises(UserError, match=re.escape(says)):
            run_recipe(wrong, Session(tmp_path / "c", cache, Report(None)))


def test_the_command_line_trains_and_prints_the_next_step(
    config: Path,
    cache: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "train",
        "--config",
        str(config),
        "--data",
        f"{data}=2",
        "--two-stage",
        "--steps",
        "2",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(
        sys,
        "argv",
        ["apt-bench", *words, "--set", "train.eval_every=1", "--out", str(tmp_path), "--cache", str(cache)],
    )
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    assert "apt, two stages, frozen VLM: 18 demonstrations" in out
    assert "Next: apt-bench run" in out
    assert (tmp_path / "policy" / "model.safetensors").is_file()
