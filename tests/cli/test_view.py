"""`apt-bench view`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from apt_bench.cli._view_pages import Pages
from apt_bench.serving.view import Text
from tests.runs import add, record, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = write_run(tmp_path / "run", lambda c, t, i: i == 0, {"goal_pos": 2}, tasks=2)
    (path / "videos").mkdir()
    (path / "videos" / "a b.mp4").write_bytes(b"film")
    add(path, record("goal_pos", "task_9", 0, True, video="videos/a b.mp4"))
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(run: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "apt_bench", "view", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        try:
            assert it.stdout
            address = re.fullmatch(
                r"Episodes: (http://127\.0\.0\.1:\d+/browser/index\.html)\n", it.stdout.readline()
            )
            assert address, it.stderr and it.stderr.read()
            with urlopen(address[1], timeout=60) as page:
                assert b'<script src="browser.js">' in page.read()
            it.send_signal(number)
            out, error = it.stdout.read(), it.stderr and it.stderr.read()
            it.wait(60)
        finally:
            it.kill()
    assert it.returncode == 0
    assert error == ""
    assert "Ctrl-C" in out


def test_bad_input_is_refused(run: Path, tmp_path: Path, cli) -> None:
    assert "holds no run" in cli("view", tmp_path / "nowhere")
    assert "given twice" in cli("view", run, run)


def test_pages_follow_the_run(run: Path, tmp_path: Path) -> None:
    pages = Pages([str(run)], tmp_path / "view")
    first = pages.answer("/browser/data/rows-0.js")
    assert isinstance(first, Text)
    assert '"live":true' in first.text
    add(run, record("goal_pos", "brand_new", 0, True))
    more = pages.answer("/browser/data/rows-5.js")
    assert isinstance(more, Text)
    assert "brand_new" in more.text
    records = pages.answer("/browser/data/records-0.js")
    assert isinstance(records, Text)
    assert '"films":{"4": "films/0/videos/a%20b.mp4"}' in records.text
    assert pages.answer("/") == "/browser/index.html"
    assert pages.answer("/browser/films/0/videos/a b.mp4") == run / "videos" / "a b.mp4"


@pytest.mark.parametrize(
    "path",
    [
        "/browser/films/1/videos/a.mp4", "/browser/films/0/videos/../run.json", "/browser/films/0/run.json",
        "/browser/films/0//etc/passwd", "/../run/run.json", "//etc/passwd", "/tables", "/browser/data/rows-x.js",
        "/browser/browser.html.j2", "/tables/none.csv", "/\0",
    ],
)  # fmt: skip
def test_nothing_else_is_served(run: Path, tmp_path: Path, path: str) -> None:
    assert Pages([str(run)], tmp_path / "view").answer(path) is None


def test_the_report_is_written_when_it_is_opened_and_after_new_records(run: Path, tmp_path: Path) -> None:
    pages = Pages([str(run)], tmp_path / "view")
    page = pages.answer("/report.html")
    assert isinstance(page, Path)
    assert 'href="browser/index.html"' in page.read_text()
    assert not (page.parent / "browser").exists()
    assert isinstance(pages.answer("/tables/coverage.csv"), Path)
    written = page.stat().st_mtime_ns
    pages.answer("/report.html")
    assert page.stat().st_mtime_ns == written
    add(run, record("goal_pos", "brand_new", 0, True))
    pages.answer("/report.html")
    assert page.stat().st_mtime_ns > written
