"""Requests that change something, to the server of pages."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from apt_bench.serving.view import PageServer, Text


@pytest.fixture
def server() -> Iterator[PageServer]:
    def post(path: str, body: bytes) -> Text | None:
        return Text("a.json", body.decode()) if path == "/run" else None

    found = PageServer(0)
    found.start(lambda path: None, post)
    yield found
    found.stop()


def ask(server: PageServer, path: str = "/run", body: bytes = b"[1]", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=20)
    given = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    connection.request("POST", path, body, {k: v for k, v in given.items() if v})
    reply = connection.getresponse()
    found = reply.status, reply.read()
    connection.close()
    return found


def test_own_pages_can_send_requests(server: PageServer) -> None:
    assert ask(server) == (200, b"[1]")
    assert ask(server, Origin=server.address, Sec_Fetch_Site="same-origin") == (200, b"[1]")
    assert ask(server, Content_Type="application/json; charset=utf-8")[0] == 200
    assert ask(server, "/other")[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "none"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"},
        {"Host": "evil.example"}, {"Content_Type": "text/plain"}, {"Content_Type": ""},
        {"Content_Type": "application/x-www-form-urlencoded"},
    ],
)  # fmt: skip
def test_other_pages_cannot(server: PageServer, headers: dict[str, str]) -> None:
    assert ask(server, **headers)[0] == 403


def test_a_long_body_is_refused(server: PageServer) -> None:
    assert ask(server, body=b"x" * 2**16)[0] == 200
    assert ask(server, Content_Length=str(2**16 + 1))[0] == 413
    assert ask(server, Content_Length="-1")[0] == 413
