"""Temporary folders are removed at the end, and after a kill at the next start; those of a running process stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from apt_bench.core import temporary_folders

CODE = (
    "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
    "from apt_bench.core.temporary_folders import temporary_folder\n"
    "with temporary_folder('film') as f: (f / 'video.mp4').touch(); print(f, flush=True); sys.stdin.read()\n"
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def _aged(folder: Path) -> None:
    os.utime(folder, (0, 0))


def test_a_killed_process_leaves_a_folder_that_the_next_start_removes(place):
    words = [sys.executable, "-c", CODE, str(place)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        folder = Path(other.stdout.readline().strip())
        assert str(other.pid) in folder.name
        _aged(folder)
        temporary_folders.sweep()
        assert folder.is_dir()  # its process lives
        other.send_signal(signal.SIGKILL)
    assert folder.is_dir()
    temporary_folders.sweep()
    assert not folder.exists()


def test_it_is_gone_at_the_end_also_after_an_error(place):
    with temporary_folders.temporary_folder("film") as folder:
        (folder / "a").touch()
    assert not folder.exists()
    with pytest.raises(ValueError, match="x"), temporary_folders.temporary_folder("film"):
        raise ValueError("x")
    assert not list(place.iterdir())


def test_what_is_young_or_somebody_elses_stays(place):
    young = place / f"{temporary_folders.PREFIX}film-1-x"
    other = place / "apt-bench-other"
    link = place / f"{temporary_folders.PREFIX}link"
    target = place / "target"
    for folder in (young, other, target):
        folder.mkdir()
    link.symlink_to(target)
    _aged(other)
    _aged(target)
    temporary_folders.sweep()
    assert all(p.is_dir() for p in (young, other, target))
    _aged(young)
    temporary_folders.sweep()
    assert not young.exists()
