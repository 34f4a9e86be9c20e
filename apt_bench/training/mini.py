"""A pretrained mini VLM on disk: `mini.json` (its configuration) and `mini.safetensors`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from apt_bench.errors import UserError
from apt_bench.models.checkpoint import load_strictly
from apt_bench.models.mini_vlm import MiniVLM, MiniVLMConfig
from apt_bench.training.config import PretrainConfig


def save_mini(folder: Path, vlm: MiniVLM, about: dict[str, object]) -> None:
    """Write it, with `about` (how it was trained, and how well) beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in vlm.state_dict().items()}
    save_file(tensors, folder / "mini.safetensors.part")
    (folder / "mini.safetensors.part").replace(folder / "mini.safetensors")
    (folder / "mini.json").write_text(
        json.dumps({"config": dataclasses.asdict(vlm.config), **about}, indent=2)
    )


def is_complete(folder: Path, steps: int) -> bool:
    """Whether `folder` holds one that was trained for that many steps."""
    try:
        return bool(json.loads((folder / "mini.json").read_text())["steps"] >= steps)
    except (OSError, ValueError, KeyError):
        return False


def made_by(folder: Path, sizes: MiniVLMConfig, pretraining: PretrainConfig) -> bool:
    """Whether `folder` holds one of these sizes (the words come with it), trained to the end in this way."""
    try:
        about = json.loads((folder / "mini.json").read_text())
    except (OSError, ValueError):
        return False
    wanted = json.loads(json.dumps([dataclasses.asdict(sizes), dataclasses.asdict(pretraining)]))
    found = [{**about["config"], "words": wanted[0]["words"]}, about["pretraining"]]
    return found == wanted and about["steps"] == pretraining.train.steps


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
