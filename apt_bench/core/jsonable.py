"""Convert any Python value to one that JSON can hold, for records of environments, policies and errors."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections import deque
from collections.abc import Mapping
from enum import Enum
from typing import Any

INTEGERS = 2**63
"""Absolute values of whole numbers in files are below this."""

VALUES, CHARACTERS, DEPTH = 200_000, 2_000_000, 40
"""Maximum number of parts and of characters of a bounded value, and maximum number of levels of any value. What exceeds
them is replaced by `LEFT_OUT`."""

TEXT = 200_000
"""Maximum number of characters of one text; the middle of a longer text is left out."""

LEFT_OUT = "... (left out: too large)"

_SURROGATE = re.compile("[\ud800-\udfff]")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def jsonable(value: Any, bounded: bool = False) -> Any:
    """Convert a value to dict with text keys, list, str, int, float, bool and None.

    Arrays, tensors and their scalars become numbers and lists. Sets become sorted lists. Other objects become their
    text. Numbers that are not finite become the texts `nan`, `inf` and `-inf`. Halves of surrogate pairs become
    escapes, since no file can hold them. The function never raises, and the same value gives the same result in every
    process.

    Args:
        value: Any value; one that is already of these types is returned unchanged.
        bounded: Leave out what exceeds `VALUES`, `CHARACTERS` and `TEXT`.
    """
    return _Walk(bounded).plain(value, 0)


def encodable(text: str) -> str:
    """Write halves of surrogate pairs as escapes: `\\udc80`."""
    return text if text.isascii() else _SURROGATE.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


class _Walk:
    def __init__(self, bounded: bool) -> None:
        self._values: float = VALUES if bounded else math.inf
        self._characters: float = CHARACTERS if bounded else math.inf
        self._most = TEXT if bounded else sys.maxsize

    def plain(self, value: Any, depth: int) -> Any:
        self._values -= 1
        if self._values < 0 or self._characters < 0 or depth > DEPTH:
            return LEFT_OUT
        if value is None or isinstance(value, bool):
            return value
        try:
            return self._of(value, depth)
        except Exception as error:  # from the object's own methods
            return f"<{_kind(value)}: {type(error).__name__}>"

    def _of(self, value: Any, depth: int) -> Any:
        if isinstance(value, Enum):
            return self.plain(value.value, depth + 1)
        if isinstance(value, str):
            return self._text(str.__str__(value))
        if isinstance(value, int):
            return int(value) if abs(value) < INTEGERS else self._text(f"{int(value):#x}")
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, (list, tuple, deque, range)):
            return self._list(value, depth)
        if isinstance(value, (set, frozenset)):
            return sorted(self._list(value, depth), key=lambda v: json.dumps(v, sort_keys=True))
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._text(bytes(value[: self._most]).decode("utf-8", "backslashreplace"))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._mapping({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, depth)
        if hasattr(value, "tolist") and hasattr(value, "shape"):  # numpy and torch, without importing either
            if math.prod(value.shape) > self._values:
                return f"<{_kind(value)} of shape {tuple(value.shape)}>"
            return self.plain(value.tolist(), depth + 1)
        return self._text(_ADDRESS.sub("", str(value)))

    def _text(self, text: str) -> str:
        if len(text) > self._most:
            half = TEXT // 2 - len(LEFT_OUT)
            text = f"{text[:half]} {LEFT_OUT} {text[-half:]}"
        self._characters -= len(text)
        return encodable(text)

    def _list(self, values: Any, depth: int) -> list[Any]:
        found: list[Any] = []
        for value in values:
            found.append(self.plain(value, depth + 1))
            if self._values < 0 or self._characters < 0:
                break
        return found

    def _mapping(self, values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = self._text(key if isinstance(key, str) else str(self.plain(key, depth + 1)))
            while name in found:  # 1 and "1"
                name += "'"
            found[name] = self.plain(value, depth + 1)
            if self._values < 0 or self._characters < 0:
                break
        return found


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
