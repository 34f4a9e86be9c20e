"""Which exceptions mean that a policy's server is gone, for the common client libraries.

A policy can raise `core.errors.ServerLost` itself. Most policies do not catch the exception of their client. Its class
and base classes are compared by package and name, so no client library needs to be installed.
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
"""Numbers of an OSError that mean a network error."""

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
"""Package -> base classes. The package is the first part of the class's module: `httpcore` for
`httpcore._exceptions.NetworkError`."""

CLIENTS |= {"httpcore2": CLIENTS["httpcore"], "httpx2": CLIENTS["httpx"]}

ANSWERED = {"ray": ("RayTaskError",)}
"""Subclasses of those that mean the opposite: the server answers, and its code raised."""

GATEWAY = frozenset((408, 425, 429, 502, 503, 504, 529))
"""HTTP status codes of a server that is unreachable, overloaded or late; they do not come from its policy."""

GRPC = frozenset(("CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE"))
"""gRPC status codes with the same meaning."""


def server_lost(error: BaseException) -> bool:
    """Whether an exception means that a server is gone.

    Args:
        error: The exception. Its causes count too: `raise RuntimeError("inference failed") from error`, or the same
            without `from`. `from None` cuts the chain. Of an exception group, every member must mean it.

    Returns:
        True for a connection error, a timeout or the error of a client library. With an HTTP or gRPC status, the status
        decides: 503 is a lost server, 500 is a fault of the policy on the server.
    """
    return any(_lost(one) for one in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and its chain of causes (`__cause__`, or `__context__` where it is not suppressed)."""
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
    """The HTTP status or the name of the gRPC status of an error; None where it has none."""
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
