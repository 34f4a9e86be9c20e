"""Connections to policy servers: each sends bytes and receives the answer within a time limit.

A link raises `UserError` for what the user must correct, such as a wrong address or a refused key. It raises
`ServerLost` where a server does not answer. A link that has raised is not used again: before the next episode the
policy is made again, with a new link.
"""

from __future__ import annotations

import http.client
import re
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from apt_bench.core.errors import ServerLost, UserError
from apt_bench.core.text import one_line

CONNECT_SECONDS = 10.0

REPLY_SECONDS = 150.0
"""The first reply of a server that compiles its model takes a minute; a run kills a silent worker after 180 s."""

MOST_BYTES = 256 * 2**20
"""Bytes of one message, at most."""

MOST_PORTS = 1000


@dataclass(frozen=True)
class Address:
    """Where a server listens. path: of the URL, with a leading slash, or empty."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def url(self) -> str:
        """`scheme://host:port/path`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def addresses(texts: str | Sequence[str], schemes: Sequence[str], port: int) -> list[Address]:
    """Read addresses of servers.

    Args:
        texts: `ws://host:8000`, `host:8000`, or `host`. An address may have a path.
        schemes: Schemes that the protocol has, the default one first.
        port: The protocol's usual port.

    Raises:
        UserError: A text is no address, or its scheme is another protocol's.
    """
    found = [_address(text, schemes, port) for text in ([texts] if isinstance(texts, str) else texts)]
    if not found:
        raise UserError(f"No server is given. Use --server {schemes[0]}://HOST:{port}.")
    return found


def expand_ports(text: str) -> list[str]:
    """The addresses that a text with a range of ports means: `host:8000-8003` is four servers.

    Raises:
        UserError: The range is empty or too long.
    """
    span = re.fullmatch(r"(.*?):(\d{1,5})-(\d{1,5})(/.*)?", text.strip())
    if not span:
        return [text.strip()]
    first, last = int(span[2]), int(span[3])
    if not 0 < first <= last <= 65535 or last - first >= MOST_PORTS:
        raise UserError(f"--server {text}: {first}-{last} is not a range of ports, such as 8000-8003.")
    return [f"{span[1]}:{port}{span[4] or ''}" for port in range(first, last + 1)]


def _address(text: str, schemes: Sequence[str], usual: int) -> Address:
    example = f"Use --server {schemes[0]}://HOST:{usual}."
    scheme, mark, rest = text.strip().partition("://")
    if not mark:
        scheme, rest = schemes[0], text.strip()
    if scheme.lower() not in schemes:
        raise UserError(
            f"--server {text}: this protocol uses {' or '.join(schemes)}, not {scheme}. {example}"
        )
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host, port = parts.hostname, parts.port if parts.port is not None else usual
    except ValueError as error:
        raise UserError(f"--server {text}: {error}. {example}") from None
    if not host or re.search(r"\s", rest) or parts.username is not None or port == 0:
        raise UserError(f"--server {text} is not an address. {example}")
    path = parts.path.rstrip("/") + (f"?{parts.query}" if parts.query else "")
    return Address(scheme.lower(), host, port, path)


class Link(Protocol):
    """A connection that answers one message at a time."""

    def ask(self, message: bytes) -> bytes | str:
        """Send a message and wait for the answer. Raises ServerLost."""
        ...

    def is_open(self) -> bool:
        """Whether a message can be sent. True also where the link connects again by itself."""
        ...

    def close(self) -> None:
        """Close the connection, quietly."""
        ...


class WebSocketLink:
    """A WebSocket without compression and without keepalive pings: a server that compiles its model for a minute
    answers no ping."""

    def __init__(self, address: Address, api_key: str | None = None) -> None:
        from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException
        from websockets.sync.client import connect

        headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        try:
            self._socket: Any = connect(
                address.url,
                additional_headers=headers,
                compression=None,
                open_timeout=CONNECT_SECONDS,
                close_timeout=1.0,
                ping_interval=None,
                max_size=MOST_BYTES,
            ).__enter__()
        except InvalidStatus as error:
            raise refused(address, error.response.status_code, "a WebSocket") from error
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            raise ServerLost(no_server(address, error)) from error
        except (InvalidHandshake, WebSocketException, ValueError) as error:
            if isinstance(error.__cause__, OSError | EOFError):  # closed before it answered
                raise ServerLost(no_server(address, error.__cause__)) from error
            raise UserError(
                f"{address.url} does not answer as a WebSocket server: {one_line(error, 200)}. Check the port, and "
                "that the policy's protocol is the server's."
            ) from error
        self._address = address
        limit = struct.pack(
            "@ll", int(REPLY_SECONDS), 0
        )  # for a server that stops reading; recv has its own limit
        self._socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def ask(self, message: bytes) -> bytes | str:
        """Send a message and wait for the answer: bytes, or text of a text frame. Raises ServerLost."""
        self.send(message)
        return self.receive()

    def send(self, message: bytes) -> None:
        """Send a binary frame. Raises ServerLost."""
        with self._lost():
            self._socket.send(message)

    def receive(self, seconds: float | None = None) -> bytes | str:
        """The next frame. Raises ServerLost where none comes in time."""
        seconds = REPLY_SECONDS if seconds is None else seconds
        with self._lost(seconds):
            frame: bytes | str = self._socket.recv(timeout=seconds)
            return frame

    def is_open(self) -> bool:
        """Whether the server has not closed the connection."""
        from websockets.protocol import State

        return bool(self._socket.state is State.OPEN)

    def _lost(self, seconds: float | None = None) -> _Translated:
        return _Translated(self._address, REPLY_SECONDS if seconds is None else seconds)

    def close(self) -> None:
        """Close the connection, quietly."""
        with suppress(Exception):
            self._socket.__exit__(None, None, None)


class _Translated:
    """Turns what a client library raises into ServerLost."""

    def __init__(self, address: Address, seconds: float) -> None:
        self._address, self._seconds = address, seconds

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from websockets.exceptions import WebSocketException

        if isinstance(error, TimeoutError):
            raise ServerLost(f"{self._address.url} did not answer within {self._seconds:g} s") from error
        if isinstance(error, OSError | EOFError | WebSocketException):
            raise ServerLost(f"{self._address.url} closed the connection: {one_line(error, 300)}") from error


class ZmqLink:
    """A ZeroMQ REQ socket. After a time-out the socket cannot be used again; then this link is closed."""

    def __init__(self, address: Address) -> None:
        import zmq

        try:  # ZeroMQ itself does not report that no server listens
            socket.create_connection((address.host, address.port), CONNECT_SECONDS).close()
        except OSError as error:
            raise ServerLost(no_server(address, error)) from error
        self._address = address
        # The context of the process: one of its own would wait for ever, where it is collected before its socket.
        self._socket: Any = zmq.Context.instance().socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MOST_BYTES)
        try:
            self._socket.connect(address.url)
        except zmq.ZMQError as error:
            self.close()
            raise UserError(f"{address.url} is no address for ZeroMQ: {error}.") from error

    def ask(self, message: bytes, seconds: float | None = None) -> bytes:
        """Send a message and wait for the answer. Raises ServerLost."""
        import zmq

        seconds = REPLY_SECONDS if seconds is None else seconds
        try:
            self._socket.setsockopt(zmq.SNDTIMEO, int(1000 * CONNECT_SECONDS))
            self._socket.setsockopt(zmq.RCVTIMEO, int(1000 * seconds))
            self._socket.send(message)
            answer: bytes = self._socket.recv()
            return answer
        except zmq.Again as error:
            self.close()
            raise ServerLost(f"{self._address.url} did not answer within {seconds:g} s") from error
        except zmq.ZMQError as error:
            self.close()
            raise ServerLost(f"{self._address.url}: {error}") from error

    def is_open(self) -> bool:
        """True: ZeroMQ connects again by itself."""
        return True

    def close(self) -> None:
        """Close the socket, quietly."""
        with suppress(Exception):
            self._socket.close(0)


class HttpLink:
    """HTTP POST of JSON to one path, over a connection that stays open where the server lets it. `seconds`: time-out of
    a reply."""

    def __init__(
        self, address: Address, path: str, api_key: str | None = None, seconds: float | None = None
    ) -> None:
        self._seconds = REPLY_SECONDS if seconds is None else seconds
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._address, self._path = address, address.path or path
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._http = kind(address.host, address.port, timeout=CONNECT_SECONDS)
        try:
            self._http.connect()
        except OSError as error:
            raise ServerLost(no_server(address, error)) from error

    def ask(self, message: bytes) -> bytes:
        """POST the body and give the reply's. Raises ServerLost, and UserError for a status that cannot change."""
        try:
            try:
                response, body = self._post(message)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self._http.close()  # uvicorn closes a connection that is idle for 5 s
                response, body = self._post(message)
        except TimeoutError as error:
            raise ServerLost(f"{self._address.url} did not answer within {self._seconds:g} s") from error
        except http.client.BadStatusLine as error:
            if isinstance(error, http.client.RemoteDisconnected):
                raise ServerLost(f"{self._address.url} closed the connection") from error
            raise UserError(
                f"{self._address.url} does not answer as an HTTP server. Check the port, and that the policy's "
                "protocol is the server's."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerLost(f"{self._address.url} closed the connection: {one_line(error, 300)}") from error
        if response.status in FINAL:
            raise refused(self._address, response.status, f"POST {self._path}")
        if response.status != 200:
            text = one_line(body.decode(errors="replace"), 300)
            raise ServerLost(f"{self._address.url} answered HTTP {response.status}: {text}")
        return body

    def _post(self, message: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        if self._http.sock is None:  # closed after the last reply
            self._http.connect()
        assert self._http.sock is not None
        self._http.sock.settimeout(self._seconds)
        self._http.request("POST", self._path, message, self._headers)
        response = self._http.getresponse()
        return response, response.read(MOST_BYTES)

    def is_open(self) -> bool:
        """True: each request connects where need be."""
        return True

    def close(self) -> None:
        """Close the connection, quietly."""
        with suppress(Exception):
            self._http.close()


FINAL = frozenset((400, 401, 403, 404, 405, 415, 422, 426, 501))
"""HTTP status codes that the same request gets again."""


def refused(address: Address, status: int, what: str) -> UserError | ServerLost:
    """What an HTTP status means for a person; a server that is overloaded or restarts is lost, not refused."""
    if status in (401, 403):
        return UserError(
            f"{address.url} refuses access to {what} (HTTP {status}). Set its key in APT_BENCH_API_KEY, "
            "and check the address and its path."
        )
    if status in FINAL or status < 400:
        return UserError(
            f"{address.url} does not offer {what} (HTTP {status}). Check the address and its path, and that the "
            "policy's protocol is the server's."
        )
    return ServerLost(f"{address.url} answered HTTP {status}")


def no_server(address: Address, error: BaseException) -> str:
    """Why nothing answers at an address."""
    return f"no server answers at {address.url} ({one_line(error, 200) or type(error).__name__})"
