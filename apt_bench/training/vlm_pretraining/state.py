"""Files of the pretraining of a mini VLM: the result, and the state to resume from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from apt_bench.core.errors import UserError
from apt_bench.core.files import PART, reason, try_remove
from apt_bench.models.mini_vlm import MiniVLM
from apt_bench.models.weight_loading import load_strictly
from apt_bench.training.vlm_pretraining.weights import save_mini

STATE, HEADS = "state.safetensors", "heads.safetensors"
"""The state to resume from, deleted at the end; and the weights of `losses.Heads`."""


def save_pretrained(out: Path, vlm: MiniVLM, heads: nn.Module, about: dict[str, Any]) -> None:
    """Write the VLM and its heads, the VLM last, so that an existing `mini.json` is valid.

    Raises:
        UserError: They cannot be written.
    """
    part = out / f"{HEADS}{PART}"
    try:
        save_file({k: v.detach().contiguous() for k, v in heads.state_dict().items()}, part)
        part.replace(out / HEADS)
        save_mini(out, vlm, about)
    except (OSError, SafetensorError) as error:
        try_remove(part)
        raise _unsaved(out, error) from error


def _unsaved(out: Path, error: Exception) -> UserError:
    return UserError(
        f"The mini VLM could not be saved in {out}: {reason(error)}. Free some space and rerun the same command to "
        "resume from the last save."
    )


def save_state(
    path: Path, model: nn.Module, optims: Sequence[torch.optim.Optimizer], settings: str, step: int
) -> None:
    """Write weights and optimizer moments into one file, which exists completely or not at all.

    Raises:
        UserError: It cannot be written.
    """
    tensors = dict(model.state_dict())
    for optim in optims:
        for name, p in model.named_parameters():
            tensors |= {f"{key} {name}": value for key, value in optim.state.get(p, {}).items()}
    tensors = {k: v.detach().contiguous() for k, v in tensors.items()}
    part = path.with_name(path.name + PART)
    try:
        save_file(tensors, part, {"settings": settings, "step": str(step), "sha256": tensor_digest(tensors)})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        try_remove(part)
        raise _unsaved(path.parent, error) from error


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors' names and bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def restore_state(
    path: Path, model: nn.Module, optims: Sequence[torch.optim.Optimizer], settings: str
) -> int:
    """Load what `save_state` wrote.

    Returns:
        Finished steps, 0 if there is no file.

    Raises:
        UserError: The file is damaged or was written with other settings.
    """
    if not path.is_file():
        return 0
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        theirs, step, sha = about["settings"], int(about["step"]), about.get("sha256")
    except Exception as error:  # safetensors and torch raise many types for a damaged header
        raise UserError(f"{path} is damaged ({reason(error)}). Delete it to start again.") from error
    if theirs != settings:
        raise UserError(
            f"{path} was written by a pretraining with other settings. Delete it, or choose another folder."
        )
    if sha is not None and sha != tensor_digest(tensors):
        raise UserError(f"{path} is damaged: its digest is wrong. Delete it to start again.")
    load_strictly(model, {k: v for k, v in tensors.items() if " " not in k}, str(path))
    names = {p: name for name, p in model.named_parameters()}
    moments = [k.split(" ") for k in tensors if " " in k]
    for optim in optims:
        for p in (p for group in optim.param_groups for p in group["params"]):
            found = {key: tensors[f"{key} {name}"] for key, name in moments if name == names[p]}
            for key, value in found.items():
                if key != "step" and value.shape != p.shape:
                    raise UserError(
                        f"{path} is damaged: '{key}' of {names[p]} does not fit. Delete it to start again."
                    )
            if found:
                optim.state[p] = found
    return step
