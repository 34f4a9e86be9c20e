"""Which exceptions say that a policy's server is gone, whatever client library the policy uses.

`core.errors.ServerLost` is what a policy raises on purpose. Most let the exception of their client through. Its class
is known by package and name along the inheritance, so that no client needs to be installed here.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

BUILT_IN = (
    ConnectionError,  # ServerLost, http.client.RemoteDisconnected, BrokenPipeError and others
    TimeoutError,  # also socket's, asyncio's and concurrent.futures'
    socket.gaierror,
    socket.herror,
    ssl.SSLError,
    http.client.IncompleteRead,
    http.client.BadStatusLine,
    http.client.NotConnected,
    asyncio.IncompleteReadError,
)

NETWORK_ERRORS = frozenset(
    (
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENOTCONN,
        errno.EPIPE,
        errno.ESHUTDOWN,
        errno.ETIMEDOUT,
    )
)
"""Numbers of an OSError that speak of the network."""

CLIENTS = {
    "aiohttp": ("ClientError",),
    "anthropic": ("APIConnectionError", "APIStatusError"),
    "anyio": ("BrokenResourceError", "ClosedResourceError", "EndOfStream"),
    "grpc": ("RpcError",),
    "h11": ("RemoteProtocolError",),
    "httpcore": ("ConnectionNotAvailable", "NetworkError", "ProtocolError", "ProxyError", "TimeoutException"),
    "httpx": ("HTTPStatusError", "StreamError", "TimeoutException", "TransportError"),
    "openai": ("APIConnectionError", "APIStatusError"),
    "pynng": ("NNGException",),
    "Pyro5": ("CommunicationError",),
    "ray": ("RayError",),
    "redis": ("ConnectionError", "TimeoutError"),
    "requests": ("ChunkedEncodingError", "ConnectionError", "HTTPError", "RetryError", "Timeout"),
    "urllib": ("URLError",),
    "urllib3": ("IncompleteRead", "MaxRetryError", "ProtocolError", "ProxyError", "SSLError", "TimeoutError"),
    "websocket": ("WebSocketException",),
    "websockets": ("ConnectionClosed", "InvalidHandshake"),
    "zmq": ("Again", "ZMQError"),
}
"""Package -> base classes. The package is the first part of the class's module, so that `httpx.TransportError` and
`httpcore._exceptions.NetworkError` are found wherever the package keeps them."""

CLIENTS |= {"httpcore2": CLIENTS["httpcore"], "httpx2": CLIENTS["httpx"]}

ANSWERED = {"ray": ("RayTaskError",)}
"""Classes below those that mean the opposite: the other side is there, and its code raised."""

GATEWAY = frozenset((408, 425, 429, 502, 503, 504, 529))
"""HTTP status codes that come from a server that is away, overloaded or late, and not from its policy."""

GRPC = frozenset(("CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE"))
"""gRPC status codes that mean the same."""


def server_lost(error: BaseException) -> bool:
    """Whether this error, or one that it was raised from or while handling, says that a server is gone.

    `raise RuntimeError("inference failed") from error` says so too, and so does the same without `from`; `from None`
    cuts the link. Of a group every member must. An answer with an HTTP or gRPC status is a lost server only where the
    status says so: 503 does, 500 is the policy's own fault on the other side.
    """
    return any(_lost(one) for one in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from or while handling, what that was raised from, and so on."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)


def _lost(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(server_lost(one) for one in error.exceptions)
    if isinstance(error, OSError) and error.errno in NETWORK_ERRORS:
        return True
    if _named(error, ANSWERED) and not isinstance(error, BUILT_IN):
        return False
    if not isinstance(error, BUILT_IN) and not _named(error, CLIENTS):
        return False
    status = _status(error)
    return status is None or status in GATEWAY or status in GRPC


def _named(error: BaseException, table: Mapping[str, tuple[str, ...]]) -> bool:
    return any(
        kind.__name__ in table.get(str(kind.__module__).partition(".")[0], ()) for kind in type(error).__mro__
    )


def _status(error: BaseException) -> int | str | None:
    """The HTTP status, or the name of the gRPC status, that an error carries."""
    if _named(error, {"grpc": ("RpcError",)}):
        code = _called(getattr(error, "code", None))
        return None if code is None else str(getattr(code, "name", code))
    response = getattr(error, "response", None)
    for value in (
        getattr(error, "status_code", None),
        getattr(response, "status_code", None),
        getattr(error, "status", None),
        getattr(error, "code", None) if _named(error, {"urllib": ("HTTPError",)}) else None,
    ):
        if isinstance(value, int) and value >= 400:
            return int(value)
    return None


def _called(method: Any) -> Any:
    return method() if callable(method) else method
