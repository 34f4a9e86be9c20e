"""Isaac-GR00T's messages: msgpack in which an array is a NumPy file, or what the package msgpack_numpy writes.

    {"__ndarray_class__": True, "as_npy": bytes}                                   # N1.5, N1.6, current
    {"nd": True, "type": "<f4", "kind": "", "shape": [1, 16, 1], "data": bytes}    # seen in N1.7 clients

Sources of the format: `gr00t/policy/server_client.py` of Isaac-GR00T, and msgpack_numpy 0.4.8.
"""

from __future__ import annotations

import io
from functools import partial
from typing import Any, Literal

import numpy as np

from apt_bench.wire.arrays import WireError, array_of, dtype_of, pack, sendable, unpack

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
        file = io.BytesIO()
        np.lib.format.write_array(file, array, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": file.getvalue()}
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
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file, max_header_size=10_000)
    except Exception as error:  # NumPy's parser of headers raises many kinds, tokenize.TokenError among them
        raise WireError(f"not a NumPy file: {error!s:.100}") from None
    array = array_of(data[file.tell() :], dtype_of(dtype), shape[::-1] if fortran else shape)
    return array.T.copy() if fortran else array
