"""Checkpoints that a run can go on from: the policy's folder plus the optimiser's state.

`OUT/checkpoints/step_000500` holds `model.safetensors`, `config.json`, `provenance.json` (what policies
read), `optimizer.safetensors` and `training.json`. It is written beside its place, flushed to the disk and
renamed; only then is the one before it deleted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from apt_bench.core.errors import UserError
from apt_bench.models import checkpoint
from apt_bench.models.config import ExpertConfig
from apt_bench.models.vla import VLA

FREE = ("steps", "log_every", "eval_every", "eval_samples", "save_every", "loaders")
"""Settings that a resumed run may change; `steps` only under a constant learning rate."""


def step_folder(out: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return out / "checkpoints" / f"step_{step:07d}"


def latest(out: Path) -> Path | None:
    """The newest complete checkpoint of a stage's folder."""
    return max((p for p in (out / "checkpoints").glob("step_*") if p.name[5:].isdigit()), default=None)


def save(
    out: Path,
    step: int,
    model: VLA,
    optims: Sequence[torch.optim.Optimizer],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Path:
    """Save everything, then delete older checkpoints. Raises UserError where that fails; the older one is
    kept then."""
    folder = step_folder(out, step)
    part = folder.with_name(folder.name + ".part")
    for stale in folder.parent.glob("*.part*"):  # what a kill or a full disk left
        shutil.rmtree(stale, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    older = latest(out)
    try:
        checkpoint.save(part, model, {**provenance, "step": step})
        save_file(_optimizer_tensors(model, optims), part / "optimizer.safetensors")
        (part / "training.json").write_text(json.dumps({"step": step, "config": dict(config)}, indent=2))
        for path in (*part.iterdir(), part):
            _flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        _flush(folder.parent)
    except (OSError, SafetensorError, UserError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"The checkpoint of step {step} could not be saved in {folder.parent}: {error} "
            + (f"{older} is whole. " if older else "")
            + "Free some space; the same command goes on from the last checkpoint."
        ) from error
    if older and older != folder:
        shutil.rmtree(older, ignore_errors=True)
    return folder


def restore(
    folder: Path, model: VLA, optims: Sequence[torch.optim.Optimizer], config: Mapping[str, Any]
) -> int:
    """Load a checkpoint into `model` and `optims`; returns the number of steps it has behind it.

    Raises UserError where it is of another architecture, or was trained with other settings."""
    theirs = ExpertConfig.from_dict(_json(folder / "config.json")["expert"])
    if theirs != model.expert.config:
        wrong = [
            f"{k} is {getattr(theirs, k)!r} there and {v!r} here"
            for k, v in vars(model.expert.config).items()
            if getattr(theirs, k) != v
        ]
        raise UserError(
            f"{folder} is a checkpoint of another architecture: {'; '.join(wrong)}. Choose another --out, or the "
            "configuration it was made with."
        )
    training = _json(folder / "training.json")
    bound = {"steps"} if config.get("schedule") == "cosine" else set()
    for name, value in training["config"].items():
        if (name not in FREE or name in bound) and config.get(name) != value:
            raise UserError(
                f"{folder} was trained with {name} {value}, this run has {config.get(name)}. Give the same settings to "
                "go on, or another --out to start afresh."
            )
    loaded = checkpoint.load(folder, vlm=model.vlm)
    model.expert.load_state_dict(loaded.expert.state_dict())
    model.train()
    try:
        _load_optimizer(load_file(folder / "optimizer.safetensors"), model, optims)
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder} is damaged ({error}). Delete it and start this stage again.") from error
    return int(training["step"])


def _names(model: VLA) -> dict[int, str]:
    return {id(p): name for name, p in model.named_parameters()}


def _optimizer_tensors(model: VLA, optims: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    names = _names(model)
    return {
        f"{key}.{names[id(p)]}": value.detach().cpu().contiguous().clone()
        for optim in optims
        for p, state in optim.state.items()
        for key, value in state.items()
    }


def _load_optimizer(
    tensors: Mapping[str, Tensor], model: VLA, optims: Sequence[torch.optim.Optimizer]
) -> None:
    names = _names(model)
    keys = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
    for optim in optims:
        for p in (p for group in optim.param_groups for p in group["params"]):
            found = {key: tensors[name] for key in keys if (name := f"{key}.{names[id(p)]}") in tensors}
            if found:  # parameters that never had a gradient have no state
                optim.state[p] = {k: v.clone() if k == "step" else v.to(p.device) for k, v in found.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}). Delete its folder and start again."
        ) from error
    return content


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
