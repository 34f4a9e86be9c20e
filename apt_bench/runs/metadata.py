"""`protocol.json` and `run.json`: read and checked, so that every entry has the type that readers expect."""

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
"""Type of each entry of protocol.json that a reader uses. Other entries are allowed."""

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
    "canaries": Mapping[str, Any],
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
    "selection_rule": Text,
}
"""Type of each entry of run.json that a reader uses. Other entries are allowed."""


def read_protocol(path: Path) -> dict[str, Any]:
    """Read protocol.json.

    Raises:
        UserError: It is damaged; the message names the entry.
    """
    return _read(path, PROTOCOL)


def read_run(path: Path) -> dict[str, Any]:
    """Read run.json: what was requested, and what ran it.

    `policy`: class, arguments and the policy's declarations. `requested`: {cell: {task: number of initial states}}
    under the cells' own prompts. `requested_probes`: {probe: {cell: {task: number of initial states}}}.

    Raises:
        UserError: It is damaged; the message names the entry.
    """
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


def sequential_words(card: Mapping[str, Any]) -> str:
    """The `sequential` entry of run.json (`Sequential.card`) as a sentence. Missing parts are left out."""
    looks = card.get("looks")
    last = looks[-1] if isinstance(looks, list) and looks and isinstance(looks[-1], dict) else {}
    verdict, p, margin = card.get("verdict"), card.get("p"), card.get("margin")
    if not card.get("over"):
        found = "not over yet"
    elif verdict == "undecided":
        found = "no decision at the declared maximum"
    elif verdict == "equivalent" and isinstance(margin, float):
        found = f"equivalent within {100 * margin:g} points"
    else:
        found = str(verdict)
    chance = f", p = {p:.2g}, adjusted for all interim looks" if isinstance(p, float) else ""
    return (
        f"Sequential test against {card.get('against')}, on the initial states of its tasks: {found} after "
        f"{last.get('pairs', 0)} of at most {card.get('maximum')} pairs (only this run succeeded in "
        f"{last.get('only_run', 0)}, only the other run in {last.get('only_against', 0)}){chance}."
    )
