"""Names of the authors' released checkpoints and ours, one to one."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Our name of an official expert tensor. Raises UserError for a name the release does not have."""
    for theirs, ours in _ROOTS.items():
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            for inner, our_inner in _INSIDE.items():
                key = key.replace(inner, our_inner)
            return key
    raise UserError(
        f"'{key}' is not a tensor of the released APT expert (expected context_encoder.* or dp_head.*). "
        "Is this a checkpoint of another project?"
    )


def to_official(key: str) -> str:
    """The inverse of `from_official`."""
    for theirs, ours in _ROOTS.items():
        if key.startswith(ours):
            key = theirs + key.removeprefix(ours)
            for inner, our_inner in _INSIDE.items():
                key = key.replace(our_inner, inner)
            return key
    raise UserError(f"'{key}' has no counterpart in the released APT expert.")


def strip_wrappers(state: Mapping[str, T]) -> dict[str, T]:
    """Without what DistributedDataParallel (`module.`) and torch.compile (`_orig_mod.`) put into names."""
    return {key.replace("_orig_mod.", "").removeprefix("module."): value for key, value in state.items()}
