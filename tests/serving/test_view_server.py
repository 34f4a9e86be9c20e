"""The server of pages for browsers of this machine."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from apt_bench.core.errors import UserError
from apt_bench.serving.view import Answer, PageServer, Text

FILM = bytes(range(256)) * 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    (tmp_path / "film.mp4").write_bytes(FILM)

    def answer(path: str) -> Answer:
        if path == "/fails":
            raise UserError("It <fails>.")
        return {
            "/": "/a b.html",
            "/a b.html": Text("x.html", "<p>é\udc80"),
            "/film": tmp_path / "film.mp4",
            "/gone": tmp_path / "gone.mp4",
        }.get(path)

    found = PageServer(0)
    found.start(answer)
    yield found
    found.stop()


def ask(
    server: PageServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=20)
    connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    reply = connection.getresponse()
    found = reply.status, dict(reply.getheaders()), reply.read()
    connection.close()
    return found


def test_pages_files_and_their_headers(server: PageServer) -> None:
    status, headers, body = ask(server, "/a%20b.html?rows=3")
    assert (status, headers["Content-Type"], body) == (
        200,
        "text/html; charset=utf-8",
        "<p>é\\udc80".encode(),
    )
    assert "script-src 'self';" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"
    status, headers, body = ask(server, "/film")
    assert (status, headers["Content-Type"], body) == (200, "video/mp4", FILM)
    status, headers, body = ask(server, "/film", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "1024", b"")
    assert ask(server, "/")[1]["Location"] == "/a b.html"
    assert [ask(server, path)[0] for path in ("/other", "/gone", "/%00")] == [404, 404, 404]
    status, headers, body = ask(server, "/fails")
    assert (status, headers["Content-Type"], body) == (500, "text/plain; charset=utf-8", b"It <fails>.\n")


@pytest.mark.parametrize(
    ("span", "status", "start", "end"),
    [
        ("bytes=0-", 206, 0, 1024), ("bytes=10-19", 206, 10, 20), ("bytes=1000-5000", 206, 1000, 1024),
        ("bytes=-24", 206, 1000, 1024), ("bytes=5000-", 200, 0, 1024), ("bytes=a-b", 200, 0, 1024),
        ("bytes=1-2,4-5", 200, 0, 1024), ("lines=1-2", 200, 0, 1024),
    ],
)  # fmt: skip
def test_a_player_can_ask_for_a_part_of_a_film(
    server: PageServer, span: str, status: int, start: int, end: int
) -> None:
    got, headers, body = ask(server, "/film", Range=span)
    assert (got, body) == (status, FILM[start:end])
    assert headers.get("Content-Range") == (f"bytes {start}-{end - 1}/1024" if status == 206 else None)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "", "0.0.0.0:80", "evil.example:127.0.0.1"]
)
def test_the_name_of_another_host_is_refused(server: PageServer, host: str) -> None:
    assert ask(server, "/film", Host=host)[0] == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8600", "LOCALHOST", "[::1]:80"])
def test_names_of_this_machine_are_accepted(server: PageServer, host: str) -> None:
    assert ask(server, "/film", Host=host)[0] == 200


def test_a_page_of_another_site_can_link_here_but_not_read(server: PageServer) -> None:
    assert ask(server, "/film", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert (
        ask(server, "/film", Sec_Fetch_Site="same-site", Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="iframe")[
            0
        ]
        == 403
    )
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert ask(server, "/film", **link)[0] == 200
    assert ask(server, "/film", Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(server: PageServer, method: str) -> None:
    assert ask(server, "/film", method)[0] == 501


def test_a_port_in_use_is_named(server: PageServer) -> None:
    port = urlsplit(server.address).port or 0
    with pytest.raises(
        UserError, match=rf"127\.0\.0\.1:{port}: Address already in use\. Choose another --port"
    ):
        PageServer(port)
