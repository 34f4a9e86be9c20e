"""openpi's frames: msgpack in which an array is a map with **bytes** keys. starVLA's server uses the same.

    {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [10, 7]}
    {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}

Source of the format: `msgpack_numpy.py` of openpi-client 0.1.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from apt_bench.wire.arrays import WireError, array_of, dtype_of, pack, sendable, unpack


def encode(message: Any) -> bytes:
    """A frame of maps, lists, texts, numbers and arrays. Raises WireError for what cannot be sent."""
    return pack(message, _array)


def decode(frame: bytes) -> Any:
    """The content of a frame; arrays are the caller's own copies. Raises WireError."""
    return unpack(frame, _hook)


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = sendable(value)
        return {
            b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape
        }  # fmt: skip
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype_of(value.dtype).str}
    raise TypeError(f"a {type(value).__name__}")


def _hook(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        return array_of(found.get(b"data"), found.get(b"dtype"), found.get(b"shape"))
    if b"__npgeneric__" in found:
        try:
            return dtype_of(found.get(b"dtype")).type(found.get(b"data"))
        except (TypeError, ValueError, OverflowError):
            raise WireError("a number that does not fit its dtype") from None
    return found
