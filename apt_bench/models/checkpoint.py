"""Save and load checkpoints: apt-bench's folders and the APT authors' released files.

A checkpoint is a folder with `model.safetensors` (the expert, and those VLM weights that differ from the published
ones), `config.json` (how to build the network) and `provenance.json` (how it was trained). No code is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from apt_bench.core import files
from apt_bench.core.config import build
from apt_bench.core.digests import check_digests
from apt_bench.core.errors import UserError
from apt_bench.core.files import read_json, write_json
from apt_bench.core.paths import weights_dir
from apt_bench.models.config import ExpertConfig, VLMShape
from apt_bench.models.lora import merge
from apt_bench.models.official_names import from_official, strip_wrappers
from apt_bench.models.vla import VLA, VLMSpec, expert_on_meta_device
from apt_bench.models.vlm import VLM
from apt_bench.models.weight_loading import all_finite, fill, from_file, load_strictly

FORMAT = 1
WEIGHTS, CONFIG, PROVENANCE = "model.safetensors", "config.json", "provenance.json"


def save(folder: Path, model: VLA, provenance: Mapping[str, Any]) -> Path:
    """Write a checkpoint folder.

    The folder gets its name only when it is complete, so that an older checkpoint of that name survives a full disk.

    Args:
        folder: The folder; an existing one is replaced.
        model: The network.
        provenance: How the network was trained, for `provenance.json`.

    Returns:
        The folder.

    Raises:
        UserError: The checkpoint cannot be written.
    """
    tensors = {f"expert.{k}": v for k, v in model.expert.state_dict().items()}
    tensors |= {f"vlm.{k}": v for k, v in _own_weights(model.vlm, model.spec).items()}
    config = {
        "format": FORMAT,
        "expert": dataclasses.asdict(model.expert.config),
        "vlm": dataclasses.asdict(model.spec),
    }
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + OLD)
    try:
        _recover(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, fresh / WEIGHTS)
        write_json(fresh / CONFIG, config)
        write_json(fresh / PROVENANCE, json.loads(json.dumps(dict(provenance), default=str)))
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        _recover(folder)
        raise UserError(
            f"Could not save {folder}: {files.reason(error)}. An older checkpoint of that name is unchanged. Free some "
            "space."
        ) from error
    shutil.rmtree(old, ignore_errors=True)
    return folder


OLD = ".old"
"""Suffix of a checkpoint while a new one replaces it."""


def _recover(folder: Path) -> None:
    """Restore the name of a checkpoint if the process was killed between the two renames of `save`."""
    old = folder.with_name(folder.name + OLD)
    if old.is_dir() and not folder.exists():
        os.replace(old, folder)


def _own_weights(vlm: VLM, spec: VLMSpec) -> dict[str, Tensor]:
    """VLM weights to store: none of a frozen hub model, adapters and queries in mode `lora`, otherwise all."""
    state = vlm.state_dict()
    if spec.name == "mini" or spec.mode == "full":
        return state
    return {k: v for k, v in state.items() if ".lora_" in k or k == "queries"} if spec.mode == "lora" else {}


def load(source: str | Path, vlm: VLM | None = None) -> VLA:
    """Load a checkpoint. No more memory is allocated than the files need.

    Args:
        source: A checkpoint folder, a name of `SHIPPED`, a `ckpt_*.pt` file of the APT authors, or a hub id
            (`owner/name`, or `owner/name/path/in/repository`; either with `@revision` at its end).
        vlm: Use this vision-language model instead of the one that the checkpoint names.

    Returns:
        The network, in evaluation mode, on the CPU.

    Raises:
        UserError: A file is missing or damaged, or its tensors do not fit the network.
    """
    path = locate(source)
    if path.is_file():
        return load_official(path, vlm)
    expert_config, spec = read_config(path)
    tensors = read_tensors(path / WEIGHTS)
    check_digests(path, [WEIGHTS])
    own = _part(tensors, "vlm.")
    expert = expert_on_meta_device(expert_config)
    fill(expert, _part(tensors, "expert."), str(path))
    if vlm is None and spec.name == "mini":
        vlm = spec.on_meta_device()
        fill(vlm, own, str(path))
        return VLA(vlm, expert, spec).eval()
    vlm = vlm or spec.load()
    model = VLA(vlm, expert, spec)
    load_strictly(vlm, own, str(path), may_lack=set(vlm.state_dict()) - set(_own_weights(vlm, spec)))
    return model.eval()


def read_config(folder: Path) -> tuple[ExpertConfig, VLMSpec]:
    """Read a checkpoint's `config.json`.

    Raises:
        UserError: The file is missing or damaged, or has an unknown key or a wrong value.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path} is missing. Is {folder} a checkpoint folder?")
    config = read_json(path)
    if config.get("format") != FORMAT:
        raise UserError(f"{path}: format {config.get('format')!r}; this version reads format {FORMAT}.")
    for key in ("expert", "vlm"):
        if key not in config:
            raise UserError(f"{path}: key '{key}' is missing. Copy the checkpoint again.")
    return (
        build(ExpertConfig, config["expert"], f"{path}: expert"),
        build(VLMSpec, config["vlm"], f"{path}: vlm"),
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises UserError if it is missing or damaged."""
    try:
        files.open_regular(path).close()  # opening a pipe would wait for ever
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is missing or damaged ({files.reason(error)}). Copy the checkpoint again."
        ) from error


def provenance(source: str | Path) -> dict[str, Any]:
    """A checkpoint's `provenance.json`; {} if it has none, as the authors' files."""
    path = locate(source) / PROVENANCE
    return read_json(path) if path.is_file() else {}


def sha256(source: str | Path) -> str:
    """SHA-256 of a checkpoint's weights, in hex. Raises UserError if they cannot be read."""
    path = locate(source)
    path = path if path.is_file() else path / WEIGHTS
    try:
        return files.sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {files.reason(error)}.") from None


SHIPPED = {
    "mini": weights_dir("mini_policy"),
    "libero_object": weights_dir("libero_object"),
    "libero_spatial": weights_dir("libero_spatial"),
    "libero_goal": weights_dir("libero_goal"),
    "libero_long": weights_dir("libero_long"),
}
"""Name of a shipped checkpoint -> its folder. `mini` was trained with the recipe `mini`, `libero_SUITE` with the recipe
`mini-libero-SUITE`."""

LABELS = {"apt": "APT", "pi": "pi-style", "groot": "GR00T-style"}


def about(source: str | Path) -> dict[str, Any]:
    """Describe a checkpoint for reports.

    Returns:
        `architecture`, `two_stage`, `knowledge_insulation` (no action gradient reaches the VLM, which also holds for a
        frozen one), `finetune_vlm`, `step`, after which it was saved, and `selection_rule`, which a person may add to
        `provenance.json`: how this checkpoint was chosen. Unknown entries are left out. The authors' files do not
        record how they were trained.
    """
    path = locate(source)
    if path.is_file():
        return {"architecture": LABELS["apt"]}
    expert, vlm = read_config(path)
    trained = provenance(path)
    found: dict[str, Any] = {"architecture": "LangForce" if vlm.queries else LABELS[expert.arch]}
    tuned = vlm.mode != "frozen"
    found |= {"knowledge_insulation": not tuned, "finetune_vlm": tuned}
    recipe = trained.get("recipe")
    if isinstance(recipe, Mapping) and isinstance(recipe.get("two_stage"), bool):
        found["two_stage"] = recipe["two_stage"]
    kinds = {"step": int, "selection_rule": str}
    return found | {k: trained[k] for k, kind in kinds.items() if isinstance(trained.get(k), kind)}


def locate(source: str | Path) -> Path:
    """Find a checkpoint, and download it from the hub if needed.

    Args:
        source: As for `load`.

    Returns:
        The local path of its folder or file.

    Raises:
        UserError: There is no such checkpoint.
    """
    if str(source) in SHIPPED:
        return SHIPPED[str(source)]
    try:
        path = Path(source).expanduser()
        _recover(path)
        if path.exists():
            return path
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a name too long, no such user
        raise UserError(f"No checkpoint at {str(source)!r}: {files.reason(error)}.") from None
    name, _, revision = str(source).partition("@")
    parts = name.split("/")
    if len(parts) < 2 or str(source).startswith(("/", ".", "~")):
        raise UserError(
            f"No checkpoint at '{source}'. Give a folder with {CONFIG}, a ckpt_*.pt file, or a hub id."
        )
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        if inside.endswith(".pt"):
            return Path(hf_hub_download(repo, inside, revision=revision or None))
        return Path(snapshot_download(repo, revision=revision or None)) / inside
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise UserError(
            f"'{source}' does not exist here and could not be downloaded from the hub ({type(error).__name__}). "
            "Check the name, or download it on a machine with network access and give the folder."
        ) from error


PICKLE = 64 * 2**20
"""Maximum size in bytes of the pickle in a torch file, which lists its tensors."""


def safe_load(path: Path) -> dict[str, Any]:
    """Load a torch file of tensors and plain values. Tensors stay on the disk until they are used.

    Raises:
        UserError: The file would run code, is compressed (torch never writes that), is damaged, or holds no dictionary.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(
                entry.compress_type != zipfile.ZIP_STORED
                or (entry.filename.endswith(".pkl") and entry.file_size > PICKLE)
                for entry in archive.infolist()
            ):
                raise UserError(f"{path} was refused: parts of it are compressed or too large.")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was refused: it holds more than tensors and numbers, and loading it could run code. "
            "If you trust its author, ask them to save only the weights."
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        why = files.reason(error).splitlines()[0] or type(error).__name__
        raise UserError(f"{path} cannot be read as a torch file ({why}). Is it complete?") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint dictionary.")
    return content


def load_official(path: Path, vlm: VLM | None = None) -> VLA:
    """Load a file of the APT authors: infer sizes from the tensors, and merge LoRA adapters into the VLM."""
    content = safe_load(path)
    if "weights" not in content:
        raise UserError(f"{path} has no 'weights'; it is not a checkpoint of the released APT.")
    size = path.stat().st_size
    weights = from_file(content["weights"], f"{path}: weights", size)
    state = {from_official(k): v for k, v in strip_wrappers(weights).items()}
    # Tied token embeddings are listed twice and share one storage.
    tuned = from_file(content.get("vlm_weights", {}), f"{path}: vlm_weights", 2 * size)
    base = VLMSpec()
    official_config(state, VLMShape())  # fail before gigabytes are loaded
    vlm = vlm or base.load()
    expert = expert_on_meta_device(official_config(state, vlm.shape))
    fill(expert, state, str(path))
    for key, tensor in _official_vlm(tuned, vlm, path).items():
        vlm.state_dict()[key].copy_(tensor)
    return VLA(vlm, expert, base).eval()


def official_config(state: Mapping[str, Tensor], vlm: VLMShape) -> ExpertConfig:
    """Infer the configuration of a released expert from its tensors (under our names). Raises UserError."""
    try:
        depth, width = state["fusion.gate"].shape
        (head_dim,) = state["blocks.0.attn.q_norm.weight"].shape
        blocks = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    except (KeyError, ValueError) as error:
        raise UserError(f"This is not a released APT expert: {error} is missing or misshapen.") from error
    if not head_dim or width % head_dim:
        raise UserError(f"This is not a released APT expert: its width {width} has heads of {head_dim}.")
    if blocks not in (depth, depth // 2):
        raise UserError(
            f"This expert has {blocks} blocks for {depth} taps; it must have {depth} or {depth // 2} (Stage 1)."
        )
    return ExpertConfig(
        stage=2 if blocks == depth else 1, vlm=vlm, width=width, heads=width // head_dim, depth=depth
    )


def _official_vlm(weights: Mapping[str, Tensor], vlm: VLM, path: Path) -> dict[str, Tensor]:
    """The VLM tensors that a file replaces, under the names of `vlm`. In the file they are `vlm._qwen.model.*`."""
    prefix = "vlm._qwen."
    inner = {k.removeprefix(prefix): v for k, v in strip_wrappers(weights).items()}
    own = vlm.state_dict()
    out: dict[str, Tensor] = {}
    for key, tensor in inner.items():
        if key == "lm_head.weight":
            continue  # a second copy of the tied token embeddings
        name, _, adapter = key.partition(".lora_A.default.")
        if ".lora_B.default." in key:
            continue  # handled together with its A
        target = f"{name}.weight" if adapter else key
        if target not in own:
            raise UserError(
                f"{path}: tensor '{prefix}{key}' has no place in the VLM. Does it belong to another base model?"
            )
        if not adapter:
            _check_shape(key, tensor, tuple(own[target].shape), path)
            out[target] = tensor
            continue
        rank, (rows, columns) = len(tensor), own[target].shape
        other = inner.get(f"{name}.lora_B.default.weight")
        if other is None:
            raise UserError(f"{path}: adapter '{prefix}{name}' has no B.")
        _check_shape(key, tensor, (rank, columns), path)
        _check_shape(f"{name}.lora_B", other, (rows, rank), path)
        out[target] = own[target].clone()
        merge(out[target], tensor, other)
    return out


def _check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...], path: Path) -> None:
    if tuple(tensor.shape) != wanted or not tensor.is_floating_point():
        raise UserError(
            f"{path}: VLM tensor '{name}' is {tuple(tensor.shape)} of {tensor.dtype}; it must be {wanted}, of floats."
        )
    if not tensor.is_meta and not all_finite(tensor):
        raise UserError(f"{path}: VLM tensor '{name}' contains NaN or infinity. The weights are unusable.")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
