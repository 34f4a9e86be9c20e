"""A pretrained mini VLM on disk: `mini.json` (its configuration) and `mini.safetensors`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from apt_bench.core.config import build
from apt_bench.core.errors import UserError
from apt_bench.core.files import PART, read_json, try_remove, write_json
from apt_bench.core.paths import weights_dir
from apt_bench.models import checkpoint
from apt_bench.models.config import on_meta_device
from apt_bench.models.mini_vlm import MiniVLM, MiniVLMConfig
from apt_bench.models.weight_loading import fill
from apt_bench.training.config import PretrainConfig

SHIPPED = weights_dir("mini_vlm")
"""Folder of the shipped mini VLM; `apt-bench train --pretrain FOLDER` makes it from the default configuration."""

MINI, MINI_WEIGHTS = "mini.json", "mini.safetensors"


def save_mini(folder: Path, vlm: MiniVLM, about: dict[str, object]) -> None:
    """Write a mini VLM.

    Args:
        folder: Where to.
        vlm: The mini VLM.
        about: How it was trained, and with which result; becomes part of `mini.json`.

    Raises:
        OSError, SafetensorError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in vlm.state_dict().items()}
    part = folder / f"{MINI_WEIGHTS}{PART}"
    try:
        save_file(tensors, part)
        part.replace(folder / MINI_WEIGHTS)
    finally:
        try_remove(part)
    write_json(folder / MINI, {"config": asdict(vlm.config), **about})


def is_complete(folder: Path, steps: int) -> bool:
    """Whether `folder` holds a mini VLM that was trained for at least `steps` steps."""
    about = _about(folder)
    found = about.get("steps")
    return isinstance(found, int) and found >= steps


def made_by(folder: Path, sizes: MiniVLMConfig, pretraining: PretrainConfig) -> bool:
    """Whether `folder` holds a mini VLM of these sizes whose pretraining with these settings is complete.

    The vocabulary is not compared. A setting that is newer than the file counts as its default.
    """
    about = _about(folder)
    try:
        config: MiniVLMConfig = build(MiniVLMConfig, about.get("config"), MINI)
        found: PretrainConfig = build(PretrainConfig, about.get("pretraining"), MINI)
    except UserError:
        return False
    same = replace(config, words=()) == replace(sizes, words=()) and found == pretraining
    return same and about.get("steps") == pretraining.train.steps


def _about(folder: Path) -> dict[str, Any]:
    """Content of `mini.json`; {} if it is missing or damaged."""
    try:
        return read_json(folder / MINI)
    except UserError:
        return {}


def has_mini(source: str | Path) -> bool:
    """Whether `load_mini` can read this: a folder with a mini VLM, or a trained policy that contains one (a folder or a
    shipped name)."""
    folder = Path(checkpoint.SHIPPED.get(str(source), source))
    return (folder / MINI).is_file() or _is_policy(folder)


def _is_policy(folder: Path) -> bool:
    try:
        return checkpoint.read_config(folder)[1].name == "mini"
    except UserError:  # no policy; a Hugging Face model has a `config.json`, too
        return False


def load_mini(source: str | Path) -> MiniVLM:
    """Read a mini VLM, or that of a trained policy, and freeze it.

    Args:
        source: A folder, or the name of a shipped policy.

    Raises:
        UserError: A file is missing, damaged or does not fit.
    """
    folder = Path(checkpoint.SHIPPED.get(str(source), source))
    if not (folder / MINI).is_file() and _is_policy(folder):
        vlm = checkpoint.load(folder).vlm
        assert isinstance(vlm, MiniVLM)
        vlm.set_mode("frozen")
        return vlm
    try:
        raw = read_json(folder / MINI).get("config")
        config: MiniVLMConfig = build(MiniVLMConfig, raw, f"{folder / MINI}: config")
        tensors = checkpoint.read_tensors(folder / MINI_WEIGHTS)
        vlm = on_meta_device(lambda: MiniVLM(config), "The mini VLM")
        fill(vlm, tensors, str(folder))
    except UserError as error:
        raise UserError(
            f"{folder} is not a pretrained mini VLM: {str(error).rstrip('.')}. Expected {MINI} and {MINI_WEIGHTS}, as "
            "`apt-bench train --pretrain FOLDER` writes them."
        ) from None
    vlm.set_mode("frozen")
    return vlm
