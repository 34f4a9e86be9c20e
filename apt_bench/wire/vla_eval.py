"""vla-eval's messages, protocol version 1: msgpack maps `{type, payload, seq, timestamp}`.

An array is `{"__ndarray__": true, "data": bytes, "dtype": "<f4", "shape": [7]}`; an image may also be compressed:
`{"__image__": true, "format": "png" or "jpeg", "data": bytes, "shape": [256, 256, 3]}`.

Source of the format: `protocol/messages.py` and `protocol/numpy_codec.py` of vla-eval 0.8.0.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from apt_bench.wire.arrays import WireError, array_of, dtype_of, pack, sendable, unpack

VERSION = 1
"""Version of the protocol that both sides name in `hello`."""

MOST_PIXELS = 4096 * 4096


@dataclass(frozen=True)
class Message:
    """One message. type: `hello`, `episode_start`, `observation`, `action`, `episode_end` or `error`. seq: an answer
    has the number of the message that it answers. timestamp: seconds since 1970."""

    type: str
    payload: Mapping[str, Any]
    seq: int = 0
    timestamp: float = field(default_factory=time.time)


def encode(message: Message) -> bytes:
    """A frame; arrays, images too, are sent uncompressed. Raises WireError for what cannot be sent."""
    whole = {
        "type": message.type,
        "payload": dict(message.payload),
        "seq": message.seq,
        "timestamp": message.timestamp,
    }
    return pack(whole, _array)


def decode(frame: bytes) -> Message:
    """The message of a frame; arrays are the caller's own copies. Raises WireError."""
    found = unpack(frame, _hook)
    if not isinstance(found, dict):
        raise WireError(f"a message is a map, not a {type(found).__name__}")
    kind, payload, seq = found.get("type"), found.get("payload", {}), found.get("seq", 0)
    if not isinstance(kind, str) or not isinstance(payload, dict):
        raise WireError("a message has a text `type` and a map `payload`")
    if isinstance(seq, bool) or not isinstance(seq, int):
        raise WireError("`seq` is a whole number")
    stamp = found.get("timestamp", 0.0)
    return Message(kind, payload, seq, float(stamp) if isinstance(stamp, int | float) else 0.0)


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = sendable(value)
        return {
            "__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": array.shape
        }  # fmt: skip
    if isinstance(value, np.generic):
        dtype_of(value.dtype)
        return value.item()
    raise TypeError(f"a {type(value).__name__}")


def _hook(found: dict[Any, Any]) -> Any:
    if found.get("__ndarray__"):
        return array_of(found.get("data"), found.get("dtype"), found.get("shape"))
    if found.get("__image__"):
        return _image(found.get("data"), found.get("shape"), found.get("format"))
    return found


def _image(data: Any, shape: Any, kind: Any) -> np.ndarray:
    """The image, uint8 (H, W, 3). Its header is read before it is decoded."""
    if kind not in ("png", "jpeg") or not isinstance(data, bytes):
        raise WireError(f"an image is png or jpeg, not {kind!r:.40}")
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            if [image.height, image.width, 3] != list(shape) or image.width * image.height > MOST_PIXELS:
                raise WireError(
                    f"an image of {image.width}x{image.height} that claims the shape {shape!r:.40}"
                )
            return np.array(image.convert("RGB"))
    except WireError:
        raise
    except Exception as error:  # whatever a damaged file makes of its decoder
        raise WireError(f"an image that cannot be decoded: {error!s:.100}") from error
