"""Translate tensor names between the APT authors' released checkpoints and apt-bench."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from apt_bench.core.errors import UserError

T = TypeVar("T")

_ROOTS = {  # official prefix -> ours
    "context_encoder.proj_input.": "embed.",
    "context_encoder.proj_pe.": "ray_embed.",
    "context_encoder.proj_vl.": "fusion.project.",
    "dp_head.traj_context_attn.gate": "fusion.gate",
    "dp_head.traj_context_attn.layers.": "blocks.",
    "dp_head.denoising_time_embed.1.": "step.mlp.",
    "dp_head.hist_enc.": "tokens.history_encoder.",
    "dp_head.traj_enc.": "tokens.action_encoder.",
    "dp_head.abs_pos_enc.": "tokens.position_encoder.",
    "dp_head.arm_id_embed": "tokens.arm_embed",
    "dp_head.final_norm.": "final_norm.",
    "dp_head.act_head.": "head.",
}
_INSIDE = {".norm_vl.": ".vl.", ".norm_a.film.": ".action.", ".to_qkv.": ".qkv.", ".to_out.": ".out."}


def from_official(key: str) -> str:
    """Our name of a tensor of a released expert. Raises UserError for a name that the release does not have."""
    for theirs, ours in _ROOTS.items():
        if key.startswith(theirs):
            return _renamed(key, (theirs, ours), _INSIDE.items())
    raise UserError(
        f"'{key}' is not a tensor of the released APT expert (expected context_encoder.* or dp_head.*). "
        "Is this a checkpoint of another project?"
    )


def to_official(key: str) -> str:
    """The released name of one of our tensors; the inverse of `from_official`."""
    for theirs, ours in _ROOTS.items():
        if key.startswith(ours):
            return _renamed(key, (ours, theirs), ((new, old) for old, new in _INSIDE.items()))
    raise UserError(f"'{key}' has no counterpart in the released APT expert.")


def _renamed(key: str, root: tuple[str, str], inside: Iterable[tuple[str, str]]) -> str:
    """Replace the prefix of a name, and parts inside it; each pair is (old, new)."""
    key = root[1] + key.removeprefix(root[0])
    for old, new in inside:
        key = key.replace(old, new)
    return key


def strip_wrappers(state: Mapping[str, T]) -> dict[str, T]:
    """Remove what DistributedDataParallel (`module.`) and torch.compile (`_orig_mod.`) add to names."""
    return {key.replace("_orig_mod.", "").removeprefix("module."): value for key, value in state.items()}
