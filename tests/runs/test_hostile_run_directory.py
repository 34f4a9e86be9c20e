"""A malicious run directory: reading it never blocks, and nothing is written outside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apt_bench.core.errors import UserError
from apt_bench.runs.records import RunStore
from tests.runs import record, write_run


def _run(path: Path) -> RunStore:
    return RunStore(write_run(path, lambda *_: True, {"x": 1}, tasks=1))


@pytest.mark.parametrize("name", ["episodes.jsonl", "run.json"])
def test_a_pipe_or_a_device_among_its_files_is_a_message(name: str, tmp_path: Path):
    for kind in ("pipe", "device"):
        store = _run(tmp_path / kind)
        (store.path / name).unlink()
        (store.path / name).symlink_to("/dev/zero") if kind == "device" else os.mkfifo(store.path / name)
        with pytest.raises(UserError, match="pipe, a socket or a device"):
            store.run() if name == "run.json" else store.episodes()


def test_a_record_without_an_end_is_damaged(tmp_path: Path):
    store = _run(tmp_path / "run")
    os.truncate(store.episodes_path, 2**40)
    with pytest.raises(UserError, match="line 2, is damaged"):
        store.episodes()


def test_a_record_is_never_appended_through_a_link(tmp_path: Path):
    store, mine = _run(tmp_path / "run"), tmp_path / "mine"
    mine.write_text("kept\n")
    store.episodes_path.unlink()
    store.episodes_path.symlink_to(mine)
    with pytest.raises(OSError, match="link in a run directory"):
        store.append(record("x", "task_0", 1, True))
    assert mine.read_text() == "kept\n"


def test_neither_videos_nor_sweeping_leave_it_through_a_link(tmp_path: Path):
    store, mine = _run(tmp_path / "run"), tmp_path / "mine"
    mine.mkdir()
    (mine / "download.part").write_text("kept")
    (store.path / "videos").symlink_to(mine)
    store.sweep()
    with pytest.raises(OSError, match="link in a run directory"):
        store.put("videos/x/a.mp4", b"")
    assert [p.name for p in mine.iterdir()] == ["download.part"]
