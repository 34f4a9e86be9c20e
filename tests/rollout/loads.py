"""Policies that record when they are made: loading weights takes minutes and must not happen needlessly."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from apt_bench.policies.base import Provenance
from tests.toy import PushPolicy


def loads(log: Path) -> int:
    """How often a policy that writes to this file was made."""
    return len(log.read_text().splitlines()) if log.exists() else 0


def _note(log: str) -> None:
    with open(log, "a") as file:
        file.write("made\n")


class Declared(PushPolicy):
    """Its class declares its spec."""

    spec = dataclasses.replace(PushPolicy.spec, name="declared")

    def __init__(self, log: str) -> None:
        super().__init__()
        _note(log)


class Late(PushPolicy):
    """Only the loaded policy declares its cameras, its chunk and its weights' hash."""

    spec = None

    def __init__(self, log: str, weights: str) -> None:
        super().__init__()
        _note(log)
        digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
        self.spec = dataclasses.replace(PushPolicy.spec, name="late", provenance=Provenance(weights, digest))


class Hashed(Late):
    """The same, with a way to hash its weights without loading them."""

    @staticmethod
    def digest(log: str, weights: str) -> str:
        return hashlib.sha256(Path(weights).read_bytes()).hexdigest()
