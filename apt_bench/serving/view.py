"""An HTTP server of pages for the browsers of this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from apt_bench.core.errors import UserError
from apt_bench.core.files import open_regular, reason

HOST = "127.0.0.1"

NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine in a request's Host header. The page of another site can make its own name lead here (DNS
rebinding), but its requests then carry that name."""

TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml", ".png": "image/png", ".pdf": "application/pdf", ".mp4": "video/mp4", ".m4v": "video/mp4",
    ".mov": "video/quicktime", ".webm": "video/webm", ".mkv": "video/x-matroska",
}  # fmt: skip
"""Suffix -> content type. Other files are plain text."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Headers of every answer. A page runs only scripts of this server. Pages of other sites cannot include its files."""

BLOCK = 2**18
"""Bytes that are sent at a time."""

LARGEST = 2**16
"""Bytes of a POST request's body, at most."""


@dataclass(frozen=True)
class Text:
    """An answer that is made for the request. name: its suffix gives the type."""

    name: str
    text: str


Answer = Text | Path | str | None
"""What a path gives: a text, a file, the path of another page to go to, or None if there is nothing."""


class PageServer:
    """Serves pages on 127.0.0.1, to browsers of this machine only.

    Args:
        port: Port to listen at; 0 = a free one.

    Raises:
        UserError: The port is in use.
    """

    def __init__(self, port: int) -> None:
        try:
            self._server = _Server((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"Cannot listen at {HOST}:{port}: {reason(error)}. Choose another --port."
            ) from None
        self.address = f"http://{HOST}:{self._server.server_port}"

    def start(
        self, answer: Callable[[str], Answer], post: Callable[[str, bytes], Text | None] | None = None
    ) -> None:
        """Answer requests in threads that do not keep the process alive.

        Args:
            answer: Gives the `Answer` to a path, which begins with `/`. Several threads call it. The page shows the
                message of a UserError.
            post: Gives the answer to a POST request from its path and its body, JSON. Only the server's own pages can
                send one. None = the pages are read-only.
        """
        self._server.answer, self._server.post = answer, post
        threading.Thread(target=self._server.serve_forever, name="pages", daemon=True).start()

    def stop(self) -> None:
        """Answer no more requests, also on connections that browsers keep open."""
        self._server.stopped = True
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    stopped = False
    answer: Callable[[str], Answer]
    post: Callable[[str, bytes], Text | None] | None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: a browser may close a connection at any time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "apt-bench", ""
    timeout = 60.0
    server: _Server

    def do_GET(self) -> None:
        """Answer a request for a page or a file."""
        self._reply(body=True)

    def do_HEAD(self) -> None:
        """Answer with the headers alone."""
        self._reply(body=False)

    def do_POST(self) -> None:
        """Answer a request that changes something."""
        if self.server.post is None:
            self.send_error(HTTPStatus.NOT_IMPLEMENTED, "This server is read-only")
            return
        self.close_connection = True  # the body of a refused request is not read
        refusal = self._refusal() or self._post_refusal()
        if refusal:
            self._send(HTTPStatus.FORBIDDEN, Text("", refusal), body=True)
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > LARGEST:
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, Text("", "The request is too long.\n"), body=True)
            return
        found = self.server.post(urlsplit(self.path).path, self.rfile.read(int(length)))
        missing = found is None
        status = HTTPStatus.NOT_FOUND if missing else HTTPStatus.OK
        self._send(status, found or Text("", "There is no such page.\n"), body=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing for each request."""

    def _reply(self, body: bool) -> None:
        if self.server.stopped:
            self.close_connection = True
            return
        refusal = self._refusal()
        if refusal:
            self._send(HTTPStatus.FORBIDDEN, Text("", refusal), body)
            return
        try:
            found = self.server.answer(unquote(urlsplit(self.path).path))
        except (UserError, OSError, ValueError) as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, Text("", f"{error}\n"), body)
            return
        if isinstance(found, str):
            self._head(HTTPStatus.FOUND, {"Location": found, "Content-Length": "0"})
        elif isinstance(found, Path):
            self._file(found, body)
        else:
            missing = found is None
            status = HTTPStatus.NOT_FOUND if missing else HTTPStatus.OK
            self._send(status, found or Text("", "There is no such page.\n"), body)

    def _refusal(self) -> str:
        """Why this request may not read the pages; "" if it may."""
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name.lower() not in NAMES:
            return f"This server answers requests to {' and '.join(NAMES[:2])} only.\n"
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and not self._visits():
            return "This server answers its own pages only.\n"
        return ""

    def _post_refusal(self) -> str:
        """Why this request may not change anything; "" if it may. A page of another site cannot send JSON without
        asking first, and this server does not answer that question."""
        origin = self.headers.get("Origin")
        own = origin is None or origin == f"http://{self.headers['Host']}"
        if not own or self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            return "This server takes requests of its own pages only.\n"
        if self.headers.get_content_type() != "application/json":
            return "This server takes JSON only.\n"
        return ""

    def _visits(self) -> bool:
        """Whether the request opens a page, as a link on another site does."""
        return (
            self.headers.get("Sec-Fetch-Mode") == "navigate"
            and self.headers.get("Sec-Fetch-Dest") == "document"
        )

    def _head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: HTTPStatus, answer: Text, body: bool) -> None:
        content = answer.text.encode("utf-8", "backslashreplace")
        kind = TYPES.get(Path(answer.name).suffix, "text/plain; charset=utf-8")
        self._head(status, {"Content-Type": kind, "Content-Length": str(len(content))})
        if body:
            self.wfile.write(content)

    def _file(self, path: Path, body: bool) -> None:
        """Send a file, or the range of it that a film's player asks for."""
        try:
            file = open_regular(path)
        except OSError:
            self._send(HTTPStatus.NOT_FOUND, Text("", "The file has been removed.\n"), body)
            return
        with file:
            size = file.seek(0, 2)
            span = _span(self.headers.get("Range", ""), size)
            start, end = span or (0, size)
            headers = {
                "Content-Type": TYPES.get(path.suffix.lower(), "text/plain; charset=utf-8"),
                "Content-Length": str(end - start),
                "Accept-Ranges": "bytes",
            }
            if span:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            self._head(HTTPStatus.PARTIAL_CONTENT if span else HTTPStatus.OK, headers)
            file.seek(start)
            left = end - start if body else 0
            while left and (block := file.read(min(BLOCK, left))):
                self.wfile.write(block)
                left -= len(block)


def _span(header: str, size: int) -> tuple[int, int] | None:
    """Start and end of the bytes in a Range header; None for the whole file, also for a header of another form."""
    first, dash, last = header.removeprefix("bytes=").partition("-")
    if (
        not header.startswith("bytes=")
        or not dash
        or not f"{first}{last}".isascii()
        or not f"{first}{last}".isdigit()
    ):
        return None
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    return (start, end) if start < end else None
