"""JSON with arrays as the package json-numpy writes them, for the REST servers of OpenVLA and OpenVLA-OFT.

    {"__numpy__": "base64 of the data", "dtype": "<f8", "shape": [7]}

Their replies may be encoded twice: a JSON string that holds JSON. Source of the format: json-numpy 2.1.1, and
`vla-scripts/deploy.py` of both projects.
"""

from __future__ import annotations

import binascii
import json
from typing import Any

import numpy as np

from apt_bench.wire.arrays import WireError, array_of, dtype_of, sendable

_NO_DATA = b'"__numpy__": ""'
"""An array before its data are inserted. No text contains these bytes, because JSON escapes its quotation marks."""


def encode(message: Any) -> bytes:
    """A body of maps, lists, texts, numbers and arrays. Raises WireError for what cannot be sent.

    The base64 text of arrays is inserted into the finished JSON. `json` would search it for characters to escape and
    copy it several times, which takes five times as long.
    """
    data: list[bytes] = []

    def array(value: Any) -> dict[str, Any]:
        if not isinstance(value, np.ndarray | np.generic):
            raise TypeError(f"a {type(value).__name__}")
        found = sendable(np.asarray(value))
        data.append(binascii.b2a_base64(found.tobytes(), newline=False))
        return {"__numpy__": "", "dtype": dtype_of(found.dtype).str, "shape": found.shape}

    try:
        parts = json.dumps(message, default=array).encode().split(_NO_DATA)
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"cannot be sent: {error}") from error
    if len(parts) != len(data) + 1:
        raise WireError("cannot be sent: a map has the key `__numpy__`, which marks arrays")
    body = [parts[0]]
    for one, rest in zip(data, parts[1:], strict=True):
        body += (b'"__numpy__": "', one, b'"', rest)
    return b"".join(body)


def decode(body: bytes | str) -> Any:
    """The content of a body, also where it is encoded twice; arrays are the caller's own copies. A string that holds no
    JSON is returned as it is (`"error"` is what these servers answer when they fail). Raises WireError."""
    found = _loads(body)
    if isinstance(found, str):
        try:
            return _loads(found)
        except WireError:
            return found
    return found


def _loads(body: bytes | str) -> Any:
    try:
        return json.loads(body, object_hook=_hook)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise WireError(f"not JSON: {error!s:.100}") from error


def _hook(found: dict[str, Any]) -> Any:
    if "__numpy__" not in found:
        return found
    try:
        data = binascii.a2b_base64(found["__numpy__"], strict_mode=True)
    except (TypeError, ValueError, binascii.Error):
        raise WireError("the data of an array are not base64") from None
    return array_of(data, found.get("dtype"), found.get("shape"))
