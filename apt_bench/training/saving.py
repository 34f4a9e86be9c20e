"""Checkpoints that a run can go on from: the policy's folder plus the optimiser's state.

`OUT/checkpoints/step_000500` holds `model.safetensors`, `config.json`, `provenance.json` (what policies
read), `optimizer.safetensors`, `training.json`, and `digests.json`, by which a flipped bit is noticed. It is written
beside its place, flushed to the disk and renamed; only then is the one before it deleted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from apt_bench.core.config import Natural, build
from apt_bench.core.digests import check_digests, write_digests
from apt_bench.core.errors import UserError
from apt_bench.core.files import PART, read_json, reason, try_remove, write_json
from apt_bench.core.text import say as say_on_stderr
from apt_bench.models import checkpoint
from apt_bench.models.config import ExpertConfig
from apt_bench.models.tensors import all_finite
from apt_bench.models.vla import VLA

FREE = ("steps", "log_every", "eval_every", "eval_samples", "save_every", "loaders")
"""Settings that a resumed run may change; `steps` only under a constant learning rate."""

OPTIMIZER, TRAINING = "optimizer.safetensors", "training.json"
AGAIN = "Copy it again from where it is whole, or delete it and start this stage again."


def step_folder(out: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return out / "checkpoints" / f"step_{step:07d}"


def latest(out: Path) -> Path | None:
    """The newest complete checkpoint of a stage's folder. Raises UserError where that cannot be looked up: a training
    must not begin anew because of it."""
    folder = out / "checkpoints"
    try:
        names = [p.name for p in folder.iterdir() if STEP.fullmatch(p.name) and p.is_dir()]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"Cannot look for checkpoints in {folder}: {reason(error)}.") from None
    return folder / max(names, key=lambda name: int(name[5:])) if names else None


STEP = re.compile("step_[0-9]{1,18}")


def save(
    out: Path,
    step: int,
    model: VLA,
    optims: Sequence[torch.optim.Optimizer],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Path:
    """Save everything with its digests, then delete older checkpoints. Raises UserError where that fails; the older one
    is kept then. `out` must be there: one that vanished is not made anew."""
    folder = step_folder(out, step)
    part = folder.with_name(folder.name + PART)
    older = latest(out)
    try:
        folder.parent.mkdir(exist_ok=True)
        sweep(out, 0)
        checkpoint.save(part, model, {**provenance, "step": step})
        save_file(_optimizer_tensors(model, optims), part / OPTIMIZER)
        write_json(part / TRAINING, {"step": step, "config": dict(config)})
        write_digests(part)
        for path in (*part.iterdir(), part):
            _flush(path)
        part.rename(folder)
        _flush(folder.parent)
    except (OSError, SafetensorError, UserError) as error:
        try_remove(part)
        raise UserError(
            f"The checkpoint of step {step} could not be saved in {folder.parent}: {reason(error).rstrip('.')}. "
            + (f"{older} is whole. " if older and older.is_dir() else "")
            + "Free some space; the same command goes on from the last checkpoint."
        ) from error
    sweep(out, step)
    return folder


def sweep(out: Path, step: int) -> None:
    """Remove checkpoints before `step`, and what a kill or a full disk left of any."""
    for path in (out / "checkpoints").glob("step_*"):
        old = STEP.fullmatch(path.name) and int(path.name[5:]) < step
        if path.is_dir() and (old or PART in path.name):
            try_remove(path)


def restore(
    folder: Path,
    model: VLA,
    optims: Sequence[torch.optim.Optimizer],
    config: Mapping[str, Any],
    say: Callable[[str], None] = say_on_stderr,
) -> int:
    """Load a checkpoint into `model` and `optims`; returns the number of steps it has behind it.

    Raises UserError where it is of another architecture, was trained with other settings, or is not bit for bit what
    was saved."""
    try:
        digests = check_digests(folder)
        settings = settings_of(folder)
    except UserError as error:
        raise UserError(f"{folder} cannot be gone on from: {str(error).rstrip('.')}. {AGAIN}") from error
    if not digests:
        say(f"{folder} has no digests, as older versions saved it: damage in it would not be noticed.")
    agree(folder, model.expert.config, settings, config)
    loaded = checkpoint.load(folder, vlm=model.vlm)
    model.expert.load_state_dict(loaded.expert.state_dict())
    model.train()
    try:
        _load_optimizer(checkpoint.read_tensors(folder / OPTIMIZER), model, optims)
    except (UserError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({str(error).rstrip('.')}). {AGAIN}") from error
    return int(folder.name[5:])


def settings_of(folder: Path) -> dict[str, Any]:
    """What a checkpoint's run was trained with. Raises UserError where `training.json` does not say."""
    path = folder / TRAINING
    training = read_json(path)
    step, settings = build(Natural, training.get("step"), f"{path}: step"), training.get("config")
    if step != int(folder.name[5:]) or not isinstance(settings, dict):
        raise UserError(
            f"{path} is damaged: it does not say what was trained, and for {int(folder.name[5:])} steps."
        )
    return settings


def agree(
    folder: Path,
    expert: ExpertConfig,
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    partly: bool = False,
) -> None:
    """Raises UserError where the checkpoint `folder`, trained with the settings `theirs`, cannot be gone on from by a
    run of this expert and the settings `ours`. partly: `ours` are not all of them."""
    found, _ = checkpoint.read_config(folder)
    if found != expert:
        wrong = [
            f"{k} is {getattr(found, k)!r} there and {v!r} here"
            for k, v in vars(expert).items()
            if getattr(found, k) != v
        ]
        raise UserError(
            f"{folder} is a checkpoint of another architecture: {'; '.join(wrong)}. Choose another --out, or the "
            "configuration it was made with."
        )
    bound = {"steps"} if ours.get("schedule") == "cosine" else set()
    for name, value in theirs.items():
        if (partly and name not in ours) or (name in FREE and name not in bound):
            continue
        if ours.get(name) != value:
            raise UserError(
                f"{folder} was trained with {name} {value}, this run has {ours.get(name)}. Give the same settings to "
                "go on, or another --out to start afresh."
            )


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
    """Raises ValueError where a moment does not fit its parameter."""
    names = _names(model)
    keys = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
    for optim in optims:
        for p in (p for group in optim.param_groups for p in group["params"]):
            found = {key: tensors[name] for key in keys if (name := f"{key}.{names[id(p)]}") in tensors}
            for key, value in found.items():
                shape = () if key == "step" else tuple(p.shape)
                if tuple(value.shape) != shape or not value.is_floating_point() or not all_finite(value):
                    raise ValueError(f"{OPTIMIZER}: '{key}.{names[id(p)]}' is not {shape} finite numbers")
            if found:  # parameters that never had a gradient have no state
                optim.state[p] = {k: v.clone() if k == "step" else v.to(p.device) for k, v in found.items()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
