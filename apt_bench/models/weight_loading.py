"""Tensors from files put into networks: every one named, of the right shape and kind, finite, and no larger than what
the file holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from apt_bench.core.errors import UserError


def check_fit(
    module: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    may_lack: frozenset[str] | set[str] = frozenset(),
) -> None:
    """Raises UserError, naming every kind of fault, where `state` is not what `module` needs. The module may be a
    sketch without memory: nothing is allocated."""
    own = module.state_dict()
    missing = sorted(set(own) - set(state) - may_lack)
    surplus = sorted(set(state) - set(own))
    both = [(k, v, own[k]) for k, v in state.items() if k in own]
    wrong = [f"{k} is {tuple(v.shape)}, not {tuple(w.shape)}" for k, v, w in both if v.shape != w.shape]
    if missing or surplus or wrong:
        say = [f"{len(names)} {word} (e.g. {names[0]})" for word, names in
               (("missing", missing), ("unknown", surplus), ("of another size", wrong)) if names]  # fmt: skip
        raise UserError(f"{where} does not fit this {type(module).__name__}: tensors {', '.join(say)}. "
                        "It belongs to another architecture, stage or VLM.")  # fmt: skip
    for name, value, wanted in both:
        if value.is_floating_point() != wanted.is_floating_point():
            raise UserError(f"{where}: tensor '{name}' is of {value.dtype}; it must be of {wanted.dtype}.")
        if not value.is_meta and not all_finite(value):
            raise UserError(f"{where}: tensor '{name}' holds NaN or infinity. The weights are of no use.")


def all_finite(value: Tensor) -> bool:
    """Whether every number is one; tensors that repeat one element are looked at once."""
    once = (
        value[tuple(0 if step == 0 else slice(None) for step in value.stride())] if value.numel() else value
    )
    return not once.is_floating_point() or bool(torch.isfinite(once.float()).all())


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    may_lack: frozenset[str] | set[str] = frozenset(),
) -> None:
    """load_state_dict of what `check_fit` has checked."""
    check_fit(module, state, where, may_lack)
    module.load_state_dict(dict(state), strict=False)


def fill(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Give a sketch, see `config.sketch`, memory and these tensors. Raises UserError where they do not fit."""
    check_fit(module, state, where)
    module.to_empty(device="cpu")
    module.load_state_dict(dict(state))


def from_file(tensors: Any, where: str, size: int) -> dict[str, Tensor]:
    """A mapping of names to plain tensors that hold no more than a file of `size` bytes can. A pickle may say
    otherwise: an element repeated terabytes long, many tensors over one storage. Raises UserError."""
    if not isinstance(tensors, Mapping):
        raise UserError(f"{where} is a {type(tensors).__name__}; it must be a mapping of names to tensors.")
    left = size
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise UserError(f"{where} has a tensor whose name is {str(name)[:80]!r}, not text.")
        if not isinstance(value, Tensor):
            raise UserError(f"{where}: '{name}' is a {type(value).__name__}; it must be a tensor.")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise UserError(f"{where}: '{name}' is not a dense tensor of plain numbers.")
        left -= value.numel() * value.element_size()
        if left < 0:
            raise UserError(f"{where}: '{name}' is {tuple(value.shape)}, more than its file holds.")
    return dict(tensors)
