"""Features of a frozen VLM, computed once for every frame and stored.

The cache holds, for every frame and augmented version, the embeddings, the tapped layers and, for the pi-style expert,
keys and values, in 16 bits. Its folder's name is a digest of VLM, images, prompts and layers. A Stage-1 cache is made
from prompts without an instruction, so it holds no language.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apt_bench.core.config import Natural, build
from apt_bench.core.errors import UserError
from apt_bench.core.files import inside, read_json, write_json
from apt_bench.core.text import say as say_on_stderr
from apt_bench.models.inputs import PAD, VLFeatures
from apt_bench.models.vla import VLA
from apt_bench.models.vlm import VLM
from apt_bench.training.cache import digest, entry, require_space
from apt_bench.training.config import AugmentConfig
from apt_bench.training.progress import Say, Tick
from apt_bench.training.samples.stream import Samples

KINDS = {"token_type": "uint8", "view": "int8", "uv": "float32", "position": "int32"}
"""Stored types of the small tensors; features take 16 bits."""


def vlm_hash(vlm: VLM) -> str:
    """16 hex digits of the SHA-256 of all weights, names and bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(vlm.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


@dataclass(frozen=True)
class FeatureCache:
    """Features by (frame, version), memory-mapped.

    Attributes:
        tensors: By name, (rows * copies, ...).
        layers: VLM layers that are stored.
        copies: Augmented versions of each frame.
    """

    tensors: dict[str, Tensor]
    layers: tuple[int, ...]
    copies: int

    def __call__(self, rows: np.ndarray, versions: np.ndarray) -> VLFeatures:
        """Features of these frames (B,) in these versions (B,), on the CPU, in 16 bits."""
        index = torch.from_numpy(rows * self.copies + versions)
        found = {name: tensor[index] for name, tensor in self.tensors.items()}
        return VLFeatures(
            embeds=found["embeds"],
            taps=found["taps"].transpose(0, 1),
            layers=self.layers,
            token_type=found["token_type"].long(),
            view=found["view"].long(),
            uv=found["uv"],
            kv=tuple((kv[:, 0], kv[:, 1]) for kv in found["kv"].unbind(1)) if "kv" in found else (),
            position=found["position"].long() if "position" in found else None,
        )


def can_cache(model: VLA, augment: AugmentConfig) -> bool:
    """Whether features are the same in every epoch: the VLM is frozen and the number of versions is fixed."""
    return model.vlm.mode == "frozen" and (not augment.enabled or augment.copies > 0)


def open_features(
    model: VLA,
    samples: Samples,
    cache: Path,
    tick: Tick | None = None,
    batch: int = 32,
    device: str = "cpu",
    say: Say = say_on_stderr,
) -> FeatureCache:
    """Features of all frames of `samples`, from the cache or computed now.

    Args:
        model: Policy network with a frozen VLM.
        samples: The frames and their instructions.
        cache: Folder of the cache.
        tick: Called with (done, total) numbers of feature rows.
        batch: Frames per forward pass.
        device: torch device of the VLM.
        say: Receives messages.

    Raises:
        UserError: The VLM is not frozen, every sample has its own augmentation, or a feature does not fit 16 bits.
    """
    augment = samples.config.augment
    if not can_cache(model, augment):
        raise UserError(
            "Features can only be cached for a frozen VLM and a fixed number of augmented versions: set "
            "data.augment.copies, or data.augment.enabled: false."
        )
    copies = augment.copies if augment.enabled else 1
    expert, decisions = model.expert, samples.decisions()
    prompts = [] if model.blind else sorted({e.instruction for e, _ in decisions})
    name = digest(
        vlm_hash(model.vlm), samples.hash, expert.needed_layers, expert.needs_kv, model.blind,
        digest([e.instruction for e, _ in decisions]) if prompts else "", asdict(augment), copies,
        *(["plain words"] if model.spec.plain_words else []),
    )  # fmt: skip
    rows = len(decisions) * copies
    needed = {"embeds", "taps", "token_type", "view", "uv"} | ({"kv"} if expert.needs_kv else set())

    def read(folder: Path) -> FeatureCache:
        meta = read_json(folder / "meta.json")
        if needed - set(meta):
            raise ValueError(f"meta.json lacks {', '.join(sorted(needed - set(meta)))}")
        tensors = {}
        for key, (shape, dtype) in meta.items():
            shape = build(tuple[Natural, ...], shape, key)
            if shape[:1] != (rows,) or dtype not in (*KINDS.values(), "float16", "bfloat16"):
                raise ValueError(f"{key} is {shape} of {dtype}")
            tensors[key] = _map(inside(folder, key), shape, dtype)
        return FeatureCache(tensors, expert.needed_layers, copies)

    def make(part: Path) -> None:
        _build(part, model, samples, copies, prompts or [""], batch, device, tick)

    return entry(cache / "features" / name, make, read, say)


def _map(path: Path, shape: Sequence[int], dtype: str, new: bool = False) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    size = prod(shape)
    if not size:  # a prior of one block taps no layer
        return torch.zeros(*shape, dtype=kind)
    if not new and path.stat().st_size != size * kind.itemsize:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {size * kind.itemsize}")
    return torch.from_file(str(path), shared=new, size=size, dtype=kind).reshape(*shape)


@torch.no_grad()
def _build(
    part: Path, model: VLA, samples: Samples, copies: int, prompts: Sequence[str], batch: int, device: str,
    tick: Tick | None,
) -> None:  # fmt: skip
    decisions = samples.decisions()
    black = [np.zeros(samples.datasets[0].frames.images.shape[2:], np.uint8)] * len(samples.config.cameras)
    length = max(model.vlm.prepare([black], [text], blind=model.blind).ids.shape[1] for text in prompts)
    count = len(decisions) * copies

    def compute(start: int, stop: int) -> dict[str, Tensor]:
        rows, versions = np.divmod(np.arange(start, stop), copies)
        shown = samples.images(rows, versions, np.stack([decisions[r][0].present for r in rows]))
        prompt = model.vlm.prepare(shown, [decisions[r][0].instruction for r in rows], blind=model.blind)
        return _arrays(model.features(prompt.to(device)).to("cpu"), length)

    half = "bfloat16" if next(model.vlm.parameters()).dtype == torch.bfloat16 else "float16"
    meta = {k: ((count, *v.shape[1:]), KINDS.get(k, half)) for k, v in compute(0, 1).items()}
    require_space(part, sum(prod(shape) * getattr(torch, kind).itemsize for shape, kind in meta.values()))
    tensors = {k: _map(part / k, shape, kind, new=True) for k, (shape, kind) in meta.items()}
    for start in range(0, count, batch):
        stop = min(start + batch, count)
        for k, v in compute(start, stop).items():
            tensors[k][start:stop] = v
            if k not in KINDS and not tensors[k][start:stop].isfinite().all():
                raise UserError(f"The VLM's {k} exceed the range of {half}. Set vlm.dtype: bfloat16.")
        if tick:
            tick(stop, count)
    write_json(part / "meta.json", meta)


def _arrays(features: VLFeatures, length: int) -> dict[str, Tensor]:
    """Batch first, padded on the left to `length` tokens."""
    found = {
        "embeds": features.embeds,
        "taps": features.taps.transpose(0, 1),
        "token_type": features.token_type,
        "view": features.view,
        "uv": features.uv,
    }
    if features.kv:
        found["kv"] = torch.stack([torch.stack(pair, 1) for pair in features.kv], 1)
    if features.position is not None:
        found["position"] = features.position
    axis = {"taps": 2, "kv": 3}
    fill = {"token_type": PAD, "view": -1}
    return {k: _padded(v, axis.get(k, 1), length, fill.get(k, 0)) for k, v in found.items()}


def _padded(x: Tensor, axis: int, length: int, fill: int) -> Tensor:
    missing = length - x.shape[axis]
    if not missing:
        return x
    shape = list(x.shape)
    shape[axis] = missing
    return torch.cat([x.new_full(shape, fill), x], axis)
