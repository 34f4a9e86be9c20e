"""Training checkpoints: the policy's folder plus the state of the optimizers.

`OUT/checkpoints/step_000500` holds `model.safetensors`, `config.json` and `provenance.json`, which policies read, and
`optimizer.safetensors`, `training.json` and `digests.json` for resuming. A checkpoint is written beside its final
place, flushed to the disk and renamed; then the previous one is deleted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
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
from apt_bench.models.vla import VLA
from apt_bench.models.weight_loading import all_finite
from apt_bench.training.progress import Say

FREE = ("steps", "log_every", "eval_every", "eval_samples", "save_every", "loaders")
"""Settings that may change when a run is resumed; `steps` only with a constant learning rate."""

OPTIMIZER, TRAINING = "optimizer.safetensors", "training.json"
AGAIN = "Copy it again from an intact source, or delete it and start this stage again."


def step_folder(out: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps."""
    return out / "checkpoints" / f"step_{step:07d}"


def latest(out: Path) -> Path | None:
    """The newest complete checkpoint of a stage's folder, None if there is none.

    Raises:
        UserError: The folder cannot be listed. The training must not restart from scratch because of that.
    """
    folder = out / "checkpoints"
    try:
        names = [p.name for p in folder.iterdir() if STEP.fullmatch(p.name) and p.is_dir()]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"Cannot list the checkpoints in {folder}: {reason(error)}.") from None
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
    """Write a checkpoint, then delete older ones.

    Args:
        out: The stage's folder, which must exist; a missing one is not created.
        step: Finished steps.
        model: Policy network.
        optims: Its optimizers.
        config: Settings that a resumed run must share.
        provenance: Content of `provenance.json`.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: The checkpoint cannot be saved. The older one is kept then.
    """
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
            + (f"{older} is intact. " if older and older.is_dir() else "")
            + "Free some space and rerun the same command to resume from the last checkpoint."
        ) from error
    sweep(out, step)
    return folder


def sweep(out: Path, step: int) -> None:
    """Remove checkpoints before `step`, and partial ones that a kill or a full disk left."""
    for path in (out / "checkpoints").glob("step_*"):
        old = STEP.fullmatch(path.name) and int(path.name[5:]) < step
        if path.is_dir() and (old or PART in path.name):
            try_remove(path)


def restore(
    folder: Path,
    model: VLA,
    optims: Sequence[torch.optim.Optimizer],
    config: Mapping[str, Any],
    say: Say = say_on_stderr,
) -> int:
    """Load a checkpoint to resume from.

    Args:
        folder: The checkpoint.
        model: Policy network to fill.
        optims: Optimizers to fill.
        config: Settings of this run.
        say: Receives messages.

    Returns:
        Finished steps.

    Raises:
        UserError: The checkpoint is of another architecture, was trained with other settings, or is damaged.
    """
    try:
        digests = check_digests(folder)
        settings = settings_of(folder)
    except UserError as error:
        raise UserError(f"{folder} cannot be resumed: {str(error).rstrip('.')}. {AGAIN}") from error
    if not digests:
        say(f"{folder} was saved by an older version without digests; damage would not be detected.")
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
    """Settings of the run that wrote a checkpoint.

    Raises:
        UserError: `training.json` is missing or damaged.
    """
    path = folder / TRAINING
    training = read_json(path)
    step, settings = build(Natural, training.get("step"), f"{path}: step"), training.get("config")
    if step != int(folder.name[5:]) or not isinstance(settings, dict):
        raise UserError(f"{path} is damaged: it must hold the settings and the step {int(folder.name[5:])}.")
    return settings


def agree(
    folder: Path,
    expert: ExpertConfig,
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    partly: bool = False,
) -> None:
    """Check that a run can be resumed from a checkpoint.

    Args:
        folder: The checkpoint.
        expert: Architecture of this run.
        theirs: Settings of the checkpoint's run.
        ours: Settings of this run.
        partly: Whether `ours` holds only some of the settings.

    Raises:
        UserError: The architecture or a setting differs.
    """
    found, _ = checkpoint.read_config(folder)
    if found != expert:
        wrong = [
            f"{k} is {getattr(found, k)!r} there and {v!r} here"
            for k, v in vars(expert).items()
            if getattr(found, k) != v
        ]
        raise UserError(
            f"{folder} is a checkpoint of another architecture: {'; '.join(wrong)}. Choose another --out, or the "
            "configuration that the checkpoint was trained with."
        )
    bound = {"steps"} if ours.get("schedule") == "cosine" else set()
    for name, value in theirs.items():
        if (partly and name not in ours) or (name in FREE and name not in bound):
            continue
        if ours.get(name) != value:
            raise UserError(
                f"{folder} was trained with {name} {value}, this run has {ours.get(name)}. Give the same settings to "
                "resume, or another --out to start a new training."
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
    """Raises ValueError if a moment does not fit its parameter."""
    names = _names(model)
    keys = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
    for optim in optims:
        for p in (p for group in optim.param_groups for p in group["params"]):
            found = {key: tensors[name] for key in keys if (name := f"{key}.{names[id(p)]}") in tensors}
            for key, value in found.items():
                shape = () if key == "step" else tuple(p.shape)
                if tuple(value.shape) != shape or not value.is_floating_point() or not all_finite(value):
                    raise ValueError(f"{OPTIMIZER}: '{key}.{names[id(p)]}' is not {shape} finite numbers")
            if found:  # parameters without any gradient so far have no state
                optim.state[p] = {k: v.clone() if k == "step" else v.to(p.device) for k, v in found.items()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
