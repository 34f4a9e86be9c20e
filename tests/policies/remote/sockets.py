"""Ports on which nothing answers as it should."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from websockets.utils import accept_key


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """The port of a WebSocket server that reads nothing after the handshake."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            connection = server.accept()[0]
            connections.append(connection)
            key = connection.recv(4096).decode().partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
            lines = ("HTTP/1.1 101 Go", "Upgrade: websocket", "Connection: Upgrade")
            answer = "\r\n".join((*lines, f"Sec-WebSocket-Accept: {accept_key(key)}", "", ""))
            connection.sendall(answer.encode())

        connections: list[socket.socket] = []
        threading.Thread(target=run, daemon=True).start()
        yield server.getsockname()[1]
        for connection in connections:
            connection.close()


@contextlib.contextmanager
def listener() -> Iterator[int]:
    """The port of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
