"""Arrays as data, type and shape, checked before memory is reserved for them; and msgpack with one kind of error."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

_DTYPE = re.compile(r"\|b1|[<>=|]?[iu][1248]|[<>=|]?f[248]|bool|u?int(8|16|32|64)|float(16|32|64)")
"""Names of dtypes that travel. No objects, no text, no structures."""

MOST_DIMENSIONS = 16


class WireError(ValueError):
    """The bytes are no message of the protocol."""


def dtype_of(name: Any) -> np.dtype[Any]:
    """The dtype of this name, such as `<f4`. Raises WireError for other kinds than booleans, integers and floats."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    if isinstance(name, np.dtype):
        text = name.str
    if not _DTYPE.fullmatch(text):
        raise WireError(f"arrays of dtype {text:.60} are not accepted")
    return np.dtype(text)


def array_of(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    """The array, a copy that the caller owns.

    Args:
        data: The array's bytes, C order.
        dtype: Name of its dtype.
        shape: Its shape, a list or tuple of integers.

    Raises:
        WireError: The three do not fit each other.
    """
    kind = dtype_of(dtype)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise WireError(f"the data of an array are a {type(data).__name__}, not bytes")
    if not isinstance(shape, list | tuple) or len(shape) > MOST_DIMENSIONS:
        raise WireError(f"{shape!r:.60} is not a shape")
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape):
        raise WireError(f"{shape!r:.60} is not a shape")
    if math.prod(shape) * kind.itemsize != len(data):
        raise WireError(f"{len(data)} bytes are not an array of dtype {kind.str} and shape {list(shape)}")
    return np.frombuffer(data, kind).reshape(shape).copy()


def sendable(array: np.ndarray) -> np.ndarray:
    """The array in C order. Raises WireError for dtypes that do not travel."""
    dtype_of(array.dtype)
    return np.ascontiguousarray(array).reshape(array.shape)  # the first makes a scalar an array of one


def pack(message: Any, default: Callable[[Any], Any]) -> bytes:
    """msgpack; `default` turns arrays into what msgpack has. Raises WireError for what cannot be sent."""
    try:
        packed: bytes = msgpack.packb(message, default=default)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"cannot be sent: {error}") from error
    return packed


def unpack(frame: Any, hook: Callable[[dict[Any, Any]], Any]) -> Any:
    """The content of a msgpack frame; `hook` gets each map and may return an array instead. Raises WireError."""
    if not isinstance(frame, bytes | bytearray | memoryview):
        raise WireError("a text frame where a binary one is expected")
    try:
        return msgpack.unpackb(frame, object_hook=hook, strict_map_key=True)
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"not msgpack: {str(error) or type(error).__name__:.200}") from error
