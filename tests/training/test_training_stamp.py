"""When prepared images are made anew, and where they are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scripted import demonstration, write
from test_training_data import samples

from apt_bench.core.errors import UserError
from apt_bench.core.paths import cache_dir
from apt_bench.demos.lerobot_writer import LeRobotWriter
from apt_bench.training.cache import default_cache


def entries(cache: Path) -> int:
    return len(list((cache / "frames").iterdir()))


def later(path: Path) -> None:
    os.utime(path, (1, 1))


def test_only_files_that_are_read_make_frames_anew(tmp_path: Path) -> None:
    folder, cache = tmp_path / "demos", tmp_path / "cache"
    (folder / "run").mkdir(parents=True)
    path = write(folder / "go.hdf5", 2)
    samples(cache, folder)
    for name in ("run/run.json", "collect.json", "Thumbs.db", ".cache", "._go.hdf5"):
        (folder / name).write_text("{}")
    samples(cache, folder)
    assert entries(cache) == 1
    later(path)
    samples(cache, folder)
    assert entries(cache) == 2


@pytest.mark.parametrize("name", ["meta/info.json", "meta/episodes", "data", "videos"])
def test_every_file_of_a_lerobot_folder_that_is_read_makes_frames_anew(tmp_path: Path, name: str) -> None:
    root, cache = tmp_path / "set", tmp_path / "cache"
    writer = LeRobotWriter(root)
    for i in range(2):
        writer.add(demonstration(i))
    writer.close()
    samples(cache, root)
    (root / "README.md").write_text("of the hub")
    later(root / "meta/stats.json")
    samples(cache, root)
    assert entries(cache) == 1
    path = root / name
    later(path if path.is_file() else next(p for p in path.rglob("*") if p.is_file()))
    samples(cache, root)
    assert entries(cache) == 2


def test_without_a_home_folder_the_cache_must_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("APT_BENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == cache_dir() == tmp_path / ".cache/apt-bench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says is to be ignored
    assert default_cache() == tmp_path / ".cache/apt-bench"
    monkeypatch.setenv(
        "HOME", "nowhere"
    )  # as for a user without an entry, `~` does not become an absolute path
    assert cache_dir() is None
    with pytest.raises(UserError, match="Give --cache"):
        default_cache()
