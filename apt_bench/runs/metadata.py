"""`protocol.json` and `run.json`, read and checked: what readers use is of the type that they expect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apt_bench.core.config import Natural, build
from apt_bench.core.errors import UserError
from apt_bench.core.files import read_json

Text = str | None

PROTOCOL: dict[str, Any] = {
    "suite": str,
    "hash": str,
    "env": Text,
    "cameras": tuple[str, ...],
    "cells": Mapping[str, Any],
    "simulator": Mapping[str, Any],
}
"""Type of every entry that some reader needs; there may be others."""

RUN: dict[str, Any] = {
    "policy": {
        "policy": Text,
        "name": Text,
        "args": Mapping[str, Any],
        "weights": Text,
        "weights_sha256": Text,
        "about": Mapping[str, Any],
        "cameras": tuple[str, ...],
    },
    "requested": Mapping[str, Mapping[str, Natural]],
    "requested_probes": Mapping[str, Mapping[str, Mapping[str, Natural]]],
    "unavailable": Mapping[str, Mapping[str, str]],
    "sequential": {
        "against": Text,
        "looks": tuple[Mapping[str, Natural], ...],
        "maximum": Natural,
        "planned_looks": Natural,
        "over": bool,
        "verdict": Text,
    },
    "wall_seconds": float,
    "workers": Natural,
    "started": Text,
    "ended": Text,
    "command": Text,
}


def read_protocol(path: Path) -> dict[str, Any]:
    """The protocol card. Raises UserError, naming the entry, where it is damaged."""
    return _read(path, PROTOCOL)


def read_run(path: Path) -> dict[str, Any]:
    """What was asked and what ran it, see `rollout.identity`:

    `policy`: class, arguments and what the policy declares of itself. `requested`: {cell: {task: initial states}} asked
    for under the cells' own prompts; `requested_probes`: {probe: {cell: {task: initial states}}}. Raises UserError,
    naming the entry, where it is damaged."""
    return _read(path, RUN)


def _read(path: Path, shape: Mapping[str, Any]) -> dict[str, Any]:
    raw = {k: v for k, v in read_json(path).items() if v is not None}
    return _checked(raw, shape, f"{path} is damaged")


def _checked(raw: Any, shape: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise UserError(f"{where}; it must be an object.")
    for name, kind in shape.items():
        if raw.get(name) is not None:
            place = f"{where}: {name}"
            _checked(raw[name], kind, place) if isinstance(kind, dict) else build(kind, raw[name], place)
    return raw


FOR_PEOPLE = ("name", "about")
WHERE_IT_RUNS = ("placement", "num_gpus", "max_batch")
"""What a run says of its policy that does not tell one policy from another."""


def policy_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In what two `policy` entries of run.json are of other policies: class, arguments, weights, and what both declare.
    Never the name, which is for people, nor what an older version did not write."""
    args = [dict(side.get("args") or {}) for side in (old, new)]
    pairs = {f"args.{k}": (args[0].get(k), args[1].get(k)) for k in sorted({*args[0], *args[1]})}
    hashed = old.get("weights_sha256") and new.get("weights_sha256")
    ignored = (*FOR_PEOPLE, *WHERE_IT_RUNS, "args", *(("weights",) if hashed else ()))
    pairs |= {k: (old[k], new[k]) for k in new if k in old and k not in ignored}
    return [f"{k}: {a!r:.80} there, {b!r:.80} now" for k, (a, b) in pairs.items() if a != b]
