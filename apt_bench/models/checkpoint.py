"""Saving and loading: our checkpoint folders and the authors' released files.

A checkpoint is a folder: `model.safetensors` (expert, and of the VLM whatever differs from its published weights),
`config.json` (how to build the network) and `provenance.json` (where it comes from). Nothing here ever unpickles code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apt_bench.core.errors import UserError
from apt_bench.models.config import ExpertConfig, VLMShape
from apt_bench.models.lora import merge
from apt_bench.models.official import from_official, strip_wrappers
from apt_bench.models.vla import VLA, VLMSpec, build_expert
from apt_bench.models.vlm import VLM

FORMAT = 1
WEIGHTS, CONFIG, PROVENANCE = "model.safetensors", "config.json", "provenance.json"


def save(folder: Path, model: VLA, provenance: Mapping[str, Any]) -> Path:
    """Write a checkpoint folder. It appears under its name only when complete, so a full disk costs no older
    checkpoint."""
    tensors = {f"expert.{k}": v for k, v in model.expert.state_dict().items()}
    tensors |= {f"vlm.{k}": v for k, v in _own_weights(model.vlm, model.spec).items()}
    config = {
        "format": FORMAT,
        "expert": dataclasses.asdict(model.expert.config),
        "vlm": dataclasses.asdict(model.spec),
    }
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, fresh / WEIGHTS)
        (fresh / CONFIG).write_text(json.dumps(config, indent=2))
        (fresh / PROVENANCE).write_text(json.dumps(dict(provenance), indent=2, default=str))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise UserError(
            f"Could not save {folder}: {error}. An older checkpoint of that name is untouched; free some space."
        ) from error
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _own_weights(vlm: VLM, spec: VLMSpec) -> dict[str, Tensor]:
    """Frozen hub models are named, not stored; of adapted ones only what was added; the rest is stored whole."""
    state = vlm.state_dict()
    if spec.name == "mini" or spec.mode == "full":
        return state
    return {k: v for k, v in state.items() if ".lora_" in k or k == "queries"} if spec.mode == "lora" else {}


def load(source: str | Path, vlm: VLM | None = None) -> VLA:
    """Load a checkpoint folder, a hub id (`owner/name`, or `owner/name/path/in/repository`), or an authors'
    `ckpt_*.pt`.

    `vlm` replaces the vision-language model that the checkpoint names. The result is in evaluation mode, on the CPU.
    """
    path = locate(source)
    if path.is_file():
        return load_official(path, vlm)
    config = _read_json(path / CONFIG)
    if config.get("format") != FORMAT:
        raise UserError(
            f"{path / CONFIG}: format {config.get('format')!r}; this version reads format {FORMAT}."
        )
    expert = build_expert(ExpertConfig.from_dict(config["expert"]))
    spec = VLMSpec.from_dict(config["vlm"])
    model = VLA(vlm or spec.load(), expert, spec)
    try:
        tensors = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path / WEIGHTS} is missing or damaged ({error}). Copy the checkpoint again."
        ) from error
    load_strictly(expert, _part(tensors, "expert."), str(path))
    own = _part(tensors, "vlm.")
    load_strictly(
        model.vlm, own, str(path), may_lack=set(model.vlm.state_dict()) - set(_own_weights(model.vlm, spec))
    )
    return model.eval()


def provenance(source: str | Path) -> dict[str, Any]:
    """What a checkpoint folder says of where it comes from; {} for the authors' files."""
    path = locate(source) / PROVENANCE
    return _read_json(path) if path.is_file() else {}


def sha256(source: str | Path) -> str:
    """Hash of a checkpoint's weights."""
    path = locate(source)
    with (path if path.is_file() else path / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SHIPPED = Path(__file__).parents[1] / "training" / "weights" / "mini_policy"
"""A policy trained by the mini recipe."""

LABELS = {"apt": "APT", "pi": "pi-style", "groot": "GR00T-style"}


def about(source: str | Path) -> dict[str, Any]:
    """What reports compare a checkpoint by: `architecture`, `two_stage`, `knowledge_insulation` (no action gradient
    reaches the VLM, which a frozen one gives too), `finetune_vlm`, `step` it was saved after. What it does not say is
    left out; an authors' file says nothing of how it was trained."""
    path = locate(source)
    if path.is_file():
        return {"architecture": LABELS["apt"]}
    config = _read_json(path / CONFIG)
    trained = provenance(path)
    name = "LangForce" if config["vlm"].get("queries") else LABELS[config["expert"]["arch"]]
    found: dict[str, Any] = {"architecture": name}
    tuned = config["vlm"]["mode"] != "frozen"
    found |= {"knowledge_insulation": not tuned, "finetune_vlm": tuned}
    recipe = trained.get("recipe")
    if isinstance(recipe, Mapping) and isinstance(recipe.get("two_stage"), bool):
        found["two_stage"] = recipe["two_stage"]
    return found | {k: trained[k] for k in ("step",) if k in trained}


def locate(source: str | Path) -> Path:
    """The local path of a checkpoint: of a folder or file, of the one that ships (`mini`), or fetched from the hub."""
    if str(source) == "mini":
        return SHIPPED
    path = Path(source).expanduser()
    if path.exists():
        return path
    parts = str(source).split("/")
    if len(parts) < 2 or str(source).startswith(("/", ".", "~")):
        raise UserError(
            f"No checkpoint at '{source}'. Give a folder with {CONFIG}, a ckpt_*.pt file, or a hub id."
        )
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        return Path(hf_hub_download(repo, inside) if inside.endswith(".pt") else snapshot_download(repo)) / (
            "" if inside.endswith(".pt") else inside
        )
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise UserError(
            f"'{source}' is neither here nor could it be fetched from the hub ({type(error).__name__}). "
            "Check the name, or download it where there is a network and give the folder."
        ) from error


def safe_load(path: Path) -> dict[str, Any]:
    """torch.load of tensors and plain values only. A pickle that would run code is refused."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was refused: it holds more than tensors and numbers, and loading it could run code. "
            "If you trust its author, have them save the weights alone."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a torch file ({str(error).splitlines()[0]}). Is it complete?"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint dictionary.")
    return content


def load_official(path: Path, vlm: VLM | None = None) -> VLA:
    """Load one of the authors' files. Sizes are read off the tensors; LoRA adapters are merged into the VLM."""
    content = safe_load(path)
    if "weights" not in content:
        raise UserError(f"{path} has no 'weights'; it is not a checkpoint of the released APT.")
    state = {from_official(k): v.float() for k, v in strip_wrappers(content["weights"]).items()}
    base = VLMSpec()
    vlm = vlm or base.load()
    expert = build_expert(official_config(state, vlm.shape))
    load_strictly(expert, state, str(path))
    for key, tensor in _official_vlm(content.get("vlm_weights", {}), vlm, path).items():
        vlm.state_dict()[key].copy_(tensor)
    return VLA(vlm, expert, base).eval()


def official_config(state: Mapping[str, Tensor], vlm: VLMShape) -> ExpertConfig:
    """The configuration that an official expert's tensors (under our names) belong to."""
    try:
        depth, width = state["fusion.gate"].shape
        head_dim = len(state["blocks.0.attn.q_norm.weight"])
        blocks = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    except (KeyError, ValueError) as error:
        raise UserError(f"This is not a released APT expert: {error} is missing or misshapen.") from error
    if blocks not in (depth, depth // 2):
        raise UserError(
            f"This expert has {blocks} blocks for {depth} taps; APT has as many, or half as many (Stage 1)."
        )
    return ExpertConfig(
        stage=2 if blocks == depth else 1, vlm=vlm, width=width, heads=width // head_dim, depth=depth
    )


def _official_vlm(weights: Mapping[str, Tensor], vlm: VLM, path: Path) -> dict[str, Tensor]:
    """The VLM tensors a file replaces, under the names of `vlm`: `vlm._qwen.model.*` is its inner model."""
    prefix = "vlm._qwen."
    inner = {k.removeprefix(prefix): v for k, v in strip_wrappers(weights).items()}
    own = vlm.state_dict()
    out: dict[str, Tensor] = {}
    for key, tensor in inner.items():
        if key == "lm_head.weight":
            continue  # a second copy of the tied token embeddings
        name, _, adapter = key.partition(".lora_A.default.")
        if ".lora_B.default." in key:
            continue  # taken together with its A
        target = f"{name}.weight" if adapter else key
        if target not in own:
            raise UserError(
                f"{path}: tensor '{prefix}{key}' has no place in the VLM. Is it of another base model?"
            )
        if adapter:
            out[target] = own[target].clone()
            merge(out[target], tensor, inner[f"{name}.lora_B.default.weight"])
        else:
            out[target] = tensor
    return out


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    may_lack: frozenset[str] | set[str] = frozenset(),
) -> None:
    """load_state_dict with every missing, surplus or misshapen tensor named in one message."""
    own = module.state_dict()
    missing = sorted(set(own) - set(state) - may_lack)
    surplus = sorted(set(state) - set(own))
    wrong = [
        f"{k} is {tuple(v.shape)}, not {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and v.shape != own[k].shape
    ]
    if missing or surplus or wrong:
        say = [f"{len(names)} {word} (e.g. {names[0]})" for word, names in
               (("missing", missing), ("unknown", surplus), ("of another size", wrong)) if names]  # fmt: skip
        raise UserError(f"{where} does not fit this {type(module).__name__}: tensors {', '.join(say)}. "
                        "It belongs to another architecture, stage or VLM.")  # fmt: skip
    module.load_state_dict(dict(state), strict=False)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or not JSON ({error}). Is this a checkpoint folder?") from error
