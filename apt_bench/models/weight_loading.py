"""Check tensors from files and load them into networks.

All names and shapes must match, numbers must be finite, and tensors must not be larger than their file."""

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
    """Check that tensors fit a network, without allocating memory. The network may be on the meta device.

    Args:
        module: The network.
        state: The tensors by name.
        where: Names the source for the error message.
        may_lack: Names that may be missing.

    Raises:
        UserError: Tensors are missing, unknown, of another size or type, or not finite.
    """
    own = module.state_dict()
    missing = sorted(set(own) - set(state) - may_lack)
    surplus = sorted(set(state) - set(own))
    both = [(k, v, own[k]) for k, v in state.items() if k in own]
    wrong = [f"{k} is {tuple(v.shape)}, not {tuple(w.shape)}" for k, v, w in both if v.shape != w.shape]
    if missing or surplus or wrong:
        faults = [f"{len(names)} {word} (e.g. {names[0]})" for word, names in
               (("missing", missing), ("unknown", surplus), ("of another size", wrong)) if names]  # fmt: skip
        raise UserError(f"{where} does not fit this {type(module).__name__}: tensors {', '.join(faults)}. "
                        "It belongs to another architecture, stage or VLM.")  # fmt: skip
    for name, value, wanted in both:
        if value.is_floating_point() != wanted.is_floating_point():
            raise UserError(f"{where}: tensor '{name}' is of {value.dtype}; it must be of {wanted.dtype}.")
        if not value.is_meta and not all_finite(value):
            raise UserError(f"{where}: tensor '{name}' contains NaN or infinity. The weights are unusable.")


def all_finite(value: Tensor) -> bool:
    """Whether all numbers are finite. Dimensions of stride 0, which repeat elements, are checked once."""
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
    """Check tensors with `check_fit`, which raises UserError, and load them into a network."""
    check_fit(module, state, where, may_lack)
    module.load_state_dict(dict(state), strict=False)


def fill(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Check tensors with `check_fit`, which raises UserError, and load them into a network on the meta device."""
    check_fit(module, state, where)
    module.to_empty(device="cpu")
    module.load_state_dict(dict(state))


def from_file(tensors: Any, where: str, size: int) -> dict[str, Tensor]:
    """Check that a value from a pickle is a mapping of names to dense tensors that are not larger than their file.

    A pickle may contain an element that is repeated over terabytes, or many tensors that share one storage.

    Args:
        tensors: The value.
        where: Names the source for the error message.
        size: Size of the file in bytes.

    Raises:
        UserError: The value is anything else.
    """
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
