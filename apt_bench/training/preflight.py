"""Checks before a training starts: device, folders, data, suites, weights and architecture."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from apt_bench.core.errors import UserError
from apt_bench.core.files import reason
from apt_bench.core.text import one_line
from apt_bench.demos.dataset import open_demos
from apt_bench.models import checkpoint
from apt_bench.models.config import VLMShape
from apt_bench.models.vla import VLA, expert_on_meta_device
from apt_bench.policies.registry import find_policy
from apt_bench.rollout.runner import select
from apt_bench.training import checkpoints
from apt_bench.training.final_evaluation import POLICY, evaluation_options
from apt_bench.training.inputs import collect_options
from apt_bench.training.recipe import Recipe
from apt_bench.training.samples.episodes import read_episode
from apt_bench.training.samples.sources import find_all
from apt_bench.training.session import Session
from apt_bench.training.two_stage import check_prior, check_start, start_sha256
from apt_bench.training.vlm_pretraining.loop import check_sizes
from apt_bench.training.vlm_pretraining.weights import load_mini


def check_device(device: str) -> str:
    """The device to train on.

    Args:
        device: `cpu`, `cuda`, `cuda:N`, or `auto` for CUDA where it is available.

    Raises:
        UserError: The device cannot be used.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).add_(1)
        if torch.device(device).type in ("cpu", "cuda"):
            return device
        why = "only cpu and cuda are supported"
    except Exception as error:  # torch raises many types for unusable devices
        why = one_line(reason(error).splitlines()[0], 200)
    build = f"this torch {torch.__version__} is built for " + (
        f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
    )
    raise UserError(
        f"--device {device} cannot be used: {why.rstrip('.')}; {build}. Give --device cpu or auto."
    )


def check_writable(folder: Path, option: str) -> None:
    """Check that files can be written into a folder; it is created if needed.

    Args:
        folder: The folder.
        option: Name of the option that sets it, for the message.

    Raises:
        UserError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot write to {folder}: {reason(error)}. Give {option} another directory."
        ) from None


def check(recipe: Recipe, session: Session, workers: int = 1) -> None:
    """Check everything about a training that can be checked before it starts. Nothing but folders is created.

    Args:
        recipe: The recipe.
        session: Where and how it runs.
        workers: Number of processes.

    Raises:
        UserError: The training could not finish; the message names the cause.
    """
    check_writable(session.out, "--out")
    check_writable(session.cache, "--cache")
    for stage, config in ((1, recipe.stage1), (2, recipe.joint)):
        size = config.micro or config.batch
        if size % workers and (stage == 2 or recipe.two_stage):
            raise UserError(
                f"stage{stage}: a batch of {size} cannot be shared by {workers} processes. Choose a multiple."
            )
    shape = _check_vlm(recipe)
    if shape is not None:
        _check_networks(recipe, session.out, shape)
    if recipe.prior:
        check_prior(recipe.prior, recipe, shape)
    _check_data(recipe)
    if recipe.evaluate.suite:
        options = evaluation_options(recipe, Path("policy"), session.out)
        select(options.replace(policy="random", policy_args=()))
        _check_policy(recipe, shape)


def _check_vlm(recipe: Recipe) -> VLMShape | None:
    """The shape of the VLM; None if the VLM must be loaded to find out."""
    if recipe.start:
        return check_start(recipe)
    if recipe.vlm.name != "mini":
        from apt_bench.models.hf_vlm import check_hf

        return check_hf(recipe.vlm.name)
    if recipe.vlm_weights and recipe.vlm_weights != "auto":
        return load_mini(recipe.vlm_weights).shape
    recipe.vlm.on_meta_device()
    if recipe.vlm_weights:
        check_sizes(recipe.vlm.mini)
    mini = recipe.vlm.mini
    return VLMShape(mini.width, mini.layers, mini.heads, mini.width // mini.heads, None)


def _check_networks(recipe: Recipe, out: Path, shape: VLMShape) -> None:
    """Check that both stages can be built, that checkpoints fit on the disk, and that `out` holds no other training."""
    stages = (1, 2) if recipe.two_stage and not recipe.start else (2,)
    for stage in stages:
        config = recipe.expert_config(stage, shape)
        expert = expert_on_meta_device(config)
        size = (
            2 * 3 * 4 * sum(p.numel() for p in expert.parameters())
        )  # two checkpoints: weights, two moments
        if (free := shutil.disk_usage(out).free) < size:
            raise UserError(
                f"{out} needs {size / 1e9:.2f} GB for checkpoints and has {free / 1e9:.2f} GB free. Free some space, "
                "or give --out another directory."
            )
        if last := checkpoints.latest(out / f"stage{stage}"):
            settings = checkpoints.settings_of(last)
            rule = recipe.stage1 if stage == 1 else recipe.joint
            mode = "frozen" if stage == 1 else recipe.vlm_mode
            ours: dict[str, Any] = dataclasses.asdict(rule) | {
                "seed": recipe.seed,
                "vlm": recipe.vlm.name,
                "queries": recipe.vlm.queries,
                "vlm_mode": mode,
            }
            checkpoints.agree(last, config, settings, ours, partly=True)
            if stage == 2:
                _check_same_start(recipe, last)


def _check_same_start(recipe: Recipe, last: Path) -> None:
    """Check that a run to resume began with the weights that this recipe begins with."""
    before = checkpoint.provenance(last)
    if "start_sha256" not in before or before["start_sha256"] == start_sha256(recipe):
        return
    theirs = before["recipe"]["start"] or before["recipe"]["prior"] or "no given weights"
    raise UserError(
        f"{last} was trained from {theirs} (SHA-256 {str(before['start_sha256'])[:12]}), and this run starts from "
        f"{recipe.start or recipe.prior or 'no given weights'}. Give the same weights to resume, or another --out to "
        "start a new training."
    )


def _check_data(recipe: Recipe) -> None:
    """Check that suites to collect from exist, given data open, and one demonstration of each can be read."""
    if not recipe.data.data:
        if not recipe.collections:
            raise UserError(
                "No data to train on. Give --data PATH (demonstrations of `apt-bench collect`, or a hub id)."
            )
        for wanted in recipe.collections:
            select(collect_options(wanted))
            find_policy("oracle", wanted.policy_args).load()
        return
    for path in find_all(recipe.data.data):
        demos = open_demos(path).successes
        if len(demos):
            read_episode(demos.only(())[0], recipe.data)


def _check_policy(recipe: Recipe, shape: VLMShape | None) -> None:
    """Check that the evaluated policy accepts its arguments and its chunk covers the execute horizon."""
    wanted, stride = recipe.evaluate, recipe.data.stride
    ref = find_policy(POLICY, ("weights=policy", *wanted.policy_args))
    if shape is None or recipe.vlm.name != "mini" or "device" in ref.args:
        return
    config = recipe.expert_config(2, shape)
    horizon = (config.horizon - 1) * stride + 1
    if wanted.execute is not None and wanted.execute > horizon:
        raise UserError(f"evaluate.execute is {wanted.execute}; the policy's chunks have {horizon} steps.")
    mini = dataclasses.replace(recipe.vlm.mini, words=())
    if shape.width == mini.width and shape.layers == mini.layers and shape.kv_heads == mini.heads:
        spec = dataclasses.replace(recipe.vlm, mini=mini, mode="frozen")
        model = VLA(spec.on_meta_device(), expert_on_meta_device(config), spec)
        made = {**ref.args, "model": model, "device": "meta"}
        if wanted.execute is not None:
            made.setdefault("execute", 1)
        dataclasses.replace(ref, args=made).load()
