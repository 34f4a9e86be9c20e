"""What the pretraining of a mini VLM leaves on the disk, and goes on from."""

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
from apt_bench.models.tensors import load_strictly
from apt_bench.training.mini import save_mini

STATE, HEADS = "state.safetensors", "heads.safetensors"
"""What a killed pretraining goes on from, deleted at its end; and what it needs beside the VLM."""


def save_pretrained(out: Path, vlm: MiniVLM, heads: nn.Module, about: dict[str, Any]) -> None:
    """Write the VLM and what it needed beside it; the VLM last: what `mini.json` says is done is done. Raises UserError
    where that fails."""
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
        f"The mini VLM could not be saved in {out}: {reason(error)}. Free some space; the same command goes on from "
        "what was saved last."
    )


def save_state(
    path: Path, model: nn.Module, optims: Sequence[torch.optim.Optimizer], settings: str, step: int
) -> None:
    """Weights and the optimisers' moments in one file, which is whole or not there. Raises UserError where it cannot be
    written."""
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
    """SHA-256 over names and bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def restore_state(
    path: Path, model: nn.Module, optims: Sequence[torch.optim.Optimizer], settings: str
) -> int:
    """Load what `save_state` saved; returns the steps behind it, 0 where there is no file.

    Raises UserError where it was made with other settings, or is damaged."""
    if not path.is_file():
        return 0
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        theirs, step, sha = about["settings"], int(about["step"]), about.get("sha256")
    except Exception as error:  # safetensors and torch raise what a damaged header leads them to
        raise UserError(f"{path} is damaged ({reason(error)}). Delete it to begin anew.") from error
    if theirs != settings:
        raise UserError(
            f"{path} is of a pretraining with other settings. Delete it, or choose another folder."
        )
    if sha is not None and sha != tensor_digest(tensors):
        raise UserError(f"{path} is damaged: it is not what was saved. Delete it to begin anew.")
    load_strictly(model, {k: v for k, v in tensors.items() if " " not in k}, str(path))
    names = {p: name for name, p in model.named_parameters()}
    moments = [k.split(" ") for k in tensors if " " in k]
    for optim in optims:
        for p in (p for group in optim.param_groups for p in group["params"]):
            found = {key: tensors[f"{key} {name}"] for key, name in moments if name == names[p]}
            for key, value in found.items():
                if key != "step" and value.shape != p.shape:
                    raise UserError(
                        f"{path} is damaged: '{key}' of {names[p]} does not fit. Delete it to begin anew."
                    )
            if found:
                optim.state[p] = found
    return step
