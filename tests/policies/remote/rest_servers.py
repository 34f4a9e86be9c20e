"""Small REST servers as those of OpenVLA and OpenVLA-OFT, see `servers.py`."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from abc import abstractmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from apt_bench.wire import json_numpy
from tests.policies.remote.servers import Fake, Seen, Wrong, expect, expect_array


class _Rest(Fake):
    scheme = "http"

    def _start(self) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                fake._post(self)

            def log_message(self, *_: object) -> None:
                pass

        self._connections: list[socket.socket] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for one in self._connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _post(self, http: BaseHTTPRequestHandler) -> None:
        self._connections.append(http.connection)
        body = http.rfile.read(int(http.headers["Content-Length"]))
        status = self.status or (200 if http.path == "/act" else 404)
        if self.key and http.headers.get("Authorization") != f"Bearer {self.key}":
            status = 401
        answer = b"no"
        if status == 200:
            found = json_numpy.decode(body)
            self.requests.append(found)
            try:
                seen = self.read(found)
                self.clients += seen.prompt == "do nothing"
                answer = json_numpy.encode("error") if self.fault == "error" else self.wrap(self.chunk(seen))
            except Wrong as error:
                self.wrong.append(str(error))
                answer = json_numpy.encode("error")
        http.send_response(status)
        http.send_header("Content-Length", str(len(answer)))
        http.end_headers()
        if self.fault == "drop":
            http.wfile.write(answer[: len(answer) // 2])
            http.connection.shutdown(socket.SHUT_RDWR)
        else:
            http.wfile.write(b"x" * len(answer) if self.fault == "garbage" else answer)

    def forget(self) -> None:
        """Close every connection, as uvicorn does after 5 s."""
        for one in self._connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._connections.clear()
        time.sleep(0.05)

    @abstractmethod
    def read(self, found: dict[str, Any]) -> Seen: ...

    @abstractmethod
    def wrap(self, chunk: np.ndarray) -> bytes: ...


class OpenVla(_Rest):
    steps = 1
    keys = ("image", "instruction")

    def read(self, found: dict[str, Any]) -> Seen:
        expect("keys", set(found) - {"unnorm_key"}, set(self.keys))
        if found.get("unnorm_key") not in (None, "libero_spatial"):
            raise Wrong("unnorm_key")
        return Seen(found["instruction"], expect_array("image", found["image"], "uint8", (224, 224, 3)))

    def wrap(self, chunk: np.ndarray) -> bytes:
        return json_numpy.encode(chunk[0].tolist() if chunk.dtype.kind == "U" else chunk[0])


class Oft(_Rest):
    twice = False

    def read(self, found: dict[str, Any]) -> Seen:
        expect("keys", set(found), {"full_image", "wrist_image", "state", "instruction"})
        images = [expect_array(v, found[v], "uint8", (256, 256, 3)) for v in ("full_image", "wrist_image")]
        return Seen(found["instruction"], *images, expect_array("state", found["state"], "float64", (8,)))

    def wrap(self, chunk: np.ndarray) -> bytes:
        body = json_numpy.encode(chunk.tolist() if chunk.dtype.kind == "U" else list(chunk))
        return json_numpy.encode(body.decode()) if self.twice else body
