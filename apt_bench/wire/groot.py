"""Isaac-GR00T's messages: msgpack in which an array is a NumPy file, or what the package msgpack_numpy writes.

    {"__ndarray_class__": True, "as_npy": bytes}                                   # N1.5, N1.6, current
    {"nd": True, "type": "<f4", "kind": "", "shape": [1, 16, 1], "data": bytes}    # seen in N1.7 clients

Sources of the format: `gr00t/policy/server_client.py` of Isaac-GR00T, and msgpack_numpy 0.4.8.
"""

from __future__ import annotations

import io
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np

from apt_bench.wire.arrays import WireError, array_of, dtype_of, pack, sendable, unpack

MOST_HEADER = 10_000
"""Bytes of a NumPy file before its data, at most."""

Arrays = Literal["npy", "msgpack_numpy"]
"""How arrays are written. Both are read."""


def encode(message: Any, arrays: Arrays = "npy") -> bytes:
    """A message of maps, lists, texts, numbers and arrays. Raises WireError for what cannot be sent."""
    return pack(message, partial(_array, style=arrays))


def decode(frame: bytes) -> Any:
    """The content of a message; arrays are the caller's own copies. Raises WireError."""
    return unpack(frame, _hook)


def _array(value: Any, style: Arrays) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a {type(value).__name__}")
    array = sendable(np.asarray(value))
    if style == "npy":
        return {"__ndarray_class__": True, "as_npy": _header(array.dtype.str, array.shape) + array.tobytes()}
    if isinstance(value, np.generic):
        return {"nd": False, "type": array.dtype.str, "data": array.tobytes()}
    return {"nd": True, "type": array.dtype.str, "kind": "", "shape": array.shape, "data": array.tobytes()}


def _hook(found: dict[Any, Any]) -> Any:
    if "__ndarray_class__" in found:
        return _npy(found.get("as_npy"))
    plain = {k.decode(errors="replace") if isinstance(k, bytes) else k: v for k, v in found.items()}
    if isinstance(plain.get("nd"), bool) and "type" in plain and "data" in plain:
        if plain["nd"]:
            return array_of(plain["data"], plain["type"], plain.get("shape"))
        return array_of(plain["data"], plain["type"], ())[()]
    return found


def _npy(data: Any) -> np.ndarray:
    """The array of a NumPy file. Its header is compared with the length before memory is reserved."""
    if not isinstance(data, bytes):
        raise WireError("`as_npy` holds no bytes")
    size = 2 if data[6:7] == b"\x01" else 4  # bytes of the header's length, by the format's version
    end = 8 + size + int.from_bytes(data[8 : 8 + size], "little")
    if end > min(len(data), MOST_HEADER):
        raise WireError("not a NumPy file: its header is too long")
    shape, fortran, dtype = _read_header(data[:end])
    array = array_of(data[end:], dtype, shape[::-1] if fortran else shape)
    return array.T.copy() if fortran else array


@lru_cache(maxsize=256)  # the arrays of every request have the same few headers
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The bytes before the data of a NumPy file in C order."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


@lru_cache(maxsize=256)
def _read_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype of a NumPy file."""
    file = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file, max_header_size=MOST_HEADER)
    except Exception as error:  # NumPy's parser of headers raises many kinds, tokenize.TokenError among them
        raise WireError(f"not a NumPy file: {error!s:.100}") from None
    return tuple(shape), bool(fortran), dtype_of(dtype)
