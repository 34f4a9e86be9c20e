"""The WebSocket server: one thread per client, a health check, and a clean stop."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Protocol

from apt_bench.core.errors import UserError
from apt_bench.core.files import reason

MOST_BYTES = 64 * 2**20
"""Bytes of one message, at most."""

GOING_AWAY, STOPS = 1001, "the server stops"
"""Code and reason that close a connection when the server stops."""

GRACE_SECONDS = 10.0
"""How long a stop waits for replies that the policy is computing."""

EVERYWHERE = ("", "0.0.0.0", "::")
"""Hosts that mean every network interface."""


@dataclass(frozen=True)
class Reply:
    """What a session answers: a binary or a text frame, or nothing. close: code that closes the connection after it."""

    frame: bytes | str | None = None
    close: int | None = None
    reason: str = ""


class ClientSession(Protocol):
    """One client, in terms of frames. One thread calls it."""

    health: ClassVar[tuple[str, str, str]]
    """Path, body and content type of the health check."""

    def greeting(self) -> list[bytes]:
        """Frames that the server sends first."""
        ...

    def answer(self, frame: bytes | str) -> Reply:
        """The answer to a frame. It raises nothing."""
        ...

    def close(self) -> None:
        """The client has disconnected."""
        ...


class Listener:
    """A WebSocket server without compression and without keepalive pings, which a client may be too busy to answer.

    Args:
        session: Makes a session for a new client.
        health: See `ClientSession.health`.
        host: Address to listen at.
        port: 0 = a free one.

    Raises:
        UserError: The port is in use, or there is no such address.
    """

    def __init__(
        self, session: Callable[[], ClientSession], health: tuple[str, str, str], host: str, port: int
    ) -> None:
        from websockets.sync.server import serve

        self._make, self._health = session, health
        self._clients: dict[Any, threading.Lock] = {}  # connection -> held while a reply is computed
        self._lock = threading.Lock()
        self._stopping = False
        quiet = logging.getLogger("apt_bench.serving")
        quiet.addHandler(logging.NullHandler())
        quiet.propagate = False
        self._socket = _listening(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._server = serve(
            self._client,
            sock=self._socket,
            compression=None,
            origins=[None],  # a page in a browser sends its origin
            ping_interval=None,
            close_timeout=1.0,
            max_size=MOST_BYTES,
            process_request=self._http,
            logger=quiet,
        )

    def start(self) -> None:
        """Accept clients in threads that do not keep the process alive: daemons, like the thread that starts them."""
        threading.Thread(target=self._server.serve_forever, name="listener", daemon=True).start()

    def stop(self) -> None:
        """Accept no more clients, send the replies that are being computed, close every connection."""
        self._stopping = True
        with self._lock:
            clients = dict(self._clients)
        end = time.monotonic() + GRACE_SECONDS
        if clients:
            with ThreadPoolExecutor(len(clients)) as pool:
                for connection, busy in clients.items():
                    pool.submit(self._close, connection, busy, end)
        ending = threading.Thread(target=self._server.shutdown, daemon=True)
        ending.start()
        ending.join(2.0)

    @staticmethod
    def _close(connection: Any, busy: threading.Lock, end: float) -> None:
        held = busy.acquire(timeout=max(0.0, end - time.monotonic()))
        try:
            connection.close(GOING_AWAY, STOPS)
        finally:
            if held:
                busy.release()

    def _http(self, connection: Any, request: Any) -> Any:
        path, body, kind = self._health
        if self._stopping:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, STOPS + "\n")
        if request.path.partition("?")[0] != path:
            return None
        response = connection.respond(HTTPStatus.OK, body)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = kind
        return response

    def _client(self, connection: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        busy = threading.Lock()
        with self._lock:
            self._clients[connection] = busy
        session = self._make()
        try:
            with suppress(ConnectionClosed, OSError):
                self._talk(connection, session, busy)
        finally:
            with self._lock:
                del self._clients[connection]
            session.close()

    def _talk(self, connection: Any, session: ClientSession, busy: threading.Lock) -> None:
        for frame in session.greeting():
            connection.send(frame)
        while not self._stopping:
            frame = connection.recv()
            with busy:
                reply = session.answer(frame)
                if reply.frame is not None:
                    connection.send(reply.frame)
            if reply.close is not None:
                connection.close(reply.close, reply.reason)
                return
        connection.close(GOING_AWAY, STOPS)


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.create_server(address[:2], family=family, backlog=256)
    except (OSError, OverflowError, UnicodeError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"Cannot listen at {host}:{port}: {why}. Choose another --port or --host.") from error
    found.setsockopt(
        socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
    )  # clients inherit it; finds those that vanished
    return found
