"""A pretrained mini VLM on disk: `mini.json` (its configuration) and `mini.safetensors`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from apt_bench.core.errors import UserError
from apt_bench.models.checkpoint import load_strictly
from apt_bench.models.mini_vlm import MiniVLM, MiniVLMConfig
from apt_bench.training.config import PretrainConfig


def save_mini(folder: Path, vlm: MiniVLM, about: dict[str, object]) -> None:
    """Write it, with `about` (how it was trained, and how well) beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in vlm.state_dict().items()}
    save_file(tensors, folder / "mini.safetensors.part")
    (folder / "mini.safetensors.part").replace(folder / "mini.safetensors")
    (folder / "mini.json").write_text(json.dumps({"config": asdict(vlm.config), **about}, indent=2))


def is_complete(folder: Path, steps: int) -> bool:
    """Whether `folder` holds one that was trained for that many steps."""
    try:
        return bool(json.loads((folder / "mini.json").read_text())["steps"] >= steps)
    except (OSError, ValueError, KeyError):
        return False


def made_by(folder: Path, sizes: MiniVLMConfig, pretraining: PretrainConfig) -> bool:
    """Whether `folder` holds one of these sizes, trained to the end in this way. The words come with it, and settings
    that are newer than it do not count."""
    try:
        about = json.loads((folder / "mini.json").read_text())
    except (OSError, ValueError):
        return False
    wanted = json.loads(json.dumps({"config": asdict(sizes), "pretraining": asdict(pretraining)}))
    wanted["config"]["words"] = about["config"]["words"]
    return about["steps"] == pretraining.train.steps and all(_holds(wanted[k], about[k]) for k in wanted)


def _holds(wanted: Any, found: Any) -> bool:
    if isinstance(found, dict):
        return all(k in wanted and _holds(wanted[k], found[k]) for k in found)
    return bool(wanted == found)


def load_mini(folder: Path) -> MiniVLM:
    """Read it. Raises UserError where something is missing, damaged or does not fit."""
    try:
        raw: dict[str, Any] = json.loads((folder / "mini.json").read_text())["config"]
        tensors = load_file(folder / "mini.safetensors")
        sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        config = MiniVLMConfig(**sizes)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{folder} is no pretrained mini VLM ({error}). Expected mini.json and mini.safetensors, as "
            "`apt-bench train --pretrain FOLDER` writes them."
        ) from None
    vlm = MiniVLM(config)
    load_strictly(vlm, tensors, str(folder))
    vlm.set_mode("frozen")
    return vlm
