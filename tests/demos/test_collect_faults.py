"""Collecting loses nothing: a second collector, a full disk, a kill, a folder that vanishes."""

import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from apt_bench.core.errors import UserError
from apt_bench.core.files import exclusive
from apt_bench.demos.collect import seal
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.hdf5_reader import index_hdf5
from apt_bench.demos.hdf5_writer import merge_hdf5, write_hdf5
from tests.demos.samples import sample
from tests.demos.test_collect import OPTIONS, SUITE, toy

pytestmark = pytest.mark.medium

QUIET = Console(file=io.StringIO())


PUSH = ["collect", "--suite", SUITE, "--cells", "push", "--policy", OPTIONS.execution.policy]
"""The command of a collection; `--out` is missing."""


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("format", ["hdf5", "lerobot"])
def test_a_refused_collector_touches_nothing_of_the_running_one(tmp_path: Path, format: str) -> None:
    out = tmp_path / "d"
    toy(out, limit=2, format=format)
    write_hdf5(out / "loose/0123.hdf5", [sample(steps=4, size=16)])
    (out / "loose/0456.hdf5.1.part").write_bytes(b"being written")
    before = tree(out)
    with exclusive(out, "apt-bench collect"):
        for settings in ({}, {"size": 32}):
            with pytest.raises(UserError, match="Another apt-bench collect is writing"):
                toy(out, limit=4, format=format, **settings)
    assert tree(out) == before


def test_what_a_kill_left_half_written_is_swept_and_a_folder_with_nothing_else_is_empty(
    tmp_path: Path,
) -> None:
    out = tmp_path / "d"
    out.mkdir()
    (out / "collect.json.77.part").write_bytes(b"{")
    toy(out, limit=1)
    assert not list(out.rglob("*.part"))
    (out / "loose").mkdir()
    for name in ("loose/1.hdf5.77.part", "push/x_demo.hdf5.78.part", "collect.json.part"):
        (out / name).write_bytes(b"half")
    toy(out, limit=1)
    assert not list(out.rglob("*.part"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.part").touch()
    with pytest.raises(UserError, match="not empty"):
        toy(other)
    assert (other / "mine.part").exists()


def limited(code: str, *words: object, size: int) -> subprocess.CompletedProcess[str]:
    """Runs Python where no file may grow beyond `size` bytes, as on a full disk."""
    head = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
    return subprocess.run(
        [sys.executable, "-c", head + code, *map(str, words)], capture_output=True, text=True, check=False
    )


WRITE = """
from pathlib import Path
from apt_bench.demos.hdf5_writer import merge_hdf5, write_hdf5
from tests.demos.samples import sample
path = Path(sys.argv[1])
try:
    if len(sys.argv) > 2: merge_hdf5(path, map(Path, sys.argv[2:]))
    else: write_hdf5(path, [sample(i) for i in range(3)])
except OSError as error:
    print('refused:', error.strerror)
"""


@pytest.mark.parametrize("size", [0, 100, 2048, 10_000, 50_000, 100_000])
def test_on_a_full_disk_a_file_is_whole_or_not_there(tmp_path: Path, size: int) -> None:
    """Without protection, the HDF5 library crashes here (a segmentation fault), or omits numbers without an error."""
    done = limited(WRITE, tmp_path / "x.hdf5", size=size)
    assert (done.returncode, done.stdout) == (0, "refused: File too large\n"), done.stderr
    assert list(tmp_path.iterdir()) == []
    for i in range(3):
        write_hdf5(tmp_path / f"{i}.hdf5", [sample(i)])
    before = tree(tmp_path)
    done = limited(WRITE, tmp_path / "0.hdf5", *(tmp_path / f"{i}.hdf5" for i in range(3)), size=size)
    assert (done.returncode, done.stdout) == (0, "refused: File too large\n"), done.stderr
    assert tree(tmp_path) == before


COLLECT = """
from apt_bench.cli import main
sys.argv = ["apt-bench", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("format", ["hdf5", "lerobot"])
def test_a_full_disk_stops_with_a_message_and_the_same_command_goes_on(tmp_path: Path, format: str) -> None:
    out = tmp_path / "d"
    command = [*PUSH, "--cameras", "agentview"]
    command += ["--size", "64", "--workers", "0", "--limit", "4", "--format", format, "--out", str(out)]
    whole = toy(tmp_path / "whole", limit=4, format=format)
    files = [f for f in tree(tmp_path / "whole").items() if f[0].endswith(("hdf5", "mp4", "parquet"))]
    for size in (300, max(len(content) for _, content in files) - 10):
        done = limited(COLLECT, *command, size=size)
        assert done.returncode in (1, 2), done.stdout + done.stderr
        assert "Traceback" not in done.stderr + done.stdout
        assert "File too large" in done.stderr + done.stdout
    found = toy(out, limit=4, format=format)
    assert found.demonstrations == whole.demonstrations
    assert open_demos(out).fingerprint == open_demos(tmp_path / "whole").fingerprint
    assert len(list(open_demos(out))) == whole.demonstrations
    assert not (out / "loose").exists()


def test_a_folder_that_vanishes_while_sealing_is_a_message(tmp_path: Path) -> None:
    out = tmp_path / "d"
    write_hdf5(out / "loose/0.hdf5", [sample(steps=4, size=16)])
    index = index_hdf5(out / "loose/0.hdf5")
    shutil.rmtree(out)
    with pytest.raises(UserError, match="No file"):
        index[0].load()


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "run", "loose", "meta", "..", "", "a/b", "x" * 300, "a\0b", ".hid"]
)
def test_a_cells_or_tasks_name_stays_inside_and_meets_none_of_our_folders(tmp_path: Path, name: str) -> None:
    import dataclasses

    out = tmp_path / "in/out"
    demo = sample(steps=4, size=16)
    assert demo.info.key is not None
    for field in ("cell", "task"):
        key = dataclasses.replace(demo.info.key, **{field: name})
        info = dataclasses.replace(demo.info, key=key, episode=key.id)
        write_hdf5(out / "loose/1.hdf5", [dataclasses.replace(demo, info=info)])
        seal(out, "hdf5", QUIET)
    assert len(open_demos(out)) == 2
    assert not (out / "loose").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["out"]


def test_a_kill_between_the_files_of_the_index_is_mended(tmp_path: Path) -> None:
    """The episodes' table is newer than info.json: the next collect updates info.json."""
    import json

    out = tmp_path / "d"
    toy(out, limit=2, format="lerobot")
    info = (out / "meta/info.json").read_bytes()
    toy(out, limit=4, format="lerobot")
    count = len(open_demos(out))
    (out / "meta/info.json").write_bytes(info)
    assert len(open_demos(out)) == count
    for entry in open_demos(out).entries[:1]:
        write_hdf5(out / "loose/1.hdf5", [entry.load()])
    seal(out, "lerobot", QUIET)
    assert json.loads((out / "meta/info.json").read_text())["total_episodes"] == count
    assert len(open_demos(out)) == count


def test_other_numbers_under_the_same_key_are_not_dropped(tmp_path: Path) -> None:
    import dataclasses

    demo = sample(steps=4, size=32)
    for format in ("hdf5", "lerobot"):
        out = tmp_path / format
        for change in (0.0, 0.25, 0.0):
            other = dataclasses.replace(demo, actions=np.clip(demo.actions + change, -1, 1), segmentation={})
            write_hdf5(out / "loose/1.hdf5", [dataclasses.replace(other, images=demo.images)])
            seal(out, format, QUIET)  # type: ignore[arg-type]
        assert len(open_demos(out)) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", 0),
        ("--size", -64),
        ("--size", 960_000),
        ("--size", 2**70),
        ("--image-every", 0),
        ("--image-every", -1),
        ("--image-every", 10**9),
        ("--episodes", 0),
        ("--episodes", -1),
        ("--episodes", 10**9),
        ("--limit", 0),
        ("--limit", -3),
        ("--seed", -1),
        ("--workers", "-1"),
        ("--workers", "²"),
        ("--cameras", ","),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_before_anything_runs(
    tmp_path: Path, cli: Callable[..., str], option: str, value: Any
) -> None:
    words = {"--workers": 0, "--cameras": "agentview", "--size": 64, option: value}
    out = tmp_path / "d"
    cli(
        *PUSH,
        "--out",
        out,
        *sum(words.items(), ()),
    )
    assert not list(out.rglob("*.hdf5"))


def test_an_odd_size_is_refused_for_mp4_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--size 21 does not fit mp4"):
        toy(tmp_path / "d", size=21, format="lerobot")
    assert not (tmp_path / "d").exists()


def test_a_second_collector_does_not_disturb_the_first(tmp_path: Path) -> None:
    out = tmp_path / "d"
    command = [sys.executable, "-m", "apt_bench", *PUSH]
    command += [
        "--cameras",
        "agentview",
        "--size",
        "64",
        "--workers",
        "0",
        "--out",
        str(out),
    ]
    first = subprocess.Popen(command, env={**os.environ, "TOY_SLOW": "0.02"}, stdout=subprocess.DEVNULL)
    while first.poll() is None and not list(out.glob("loose/*.hdf5")):
        time.sleep(0.02)
    with pytest.raises(UserError, match="Another apt-bench collect is writing"):
        toy(out)
    assert first.wait() == 0
    toy(tmp_path / "e")
    assert open_demos(out).fingerprint == open_demos(tmp_path / "e").fingerprint


def test_merging_into_a_source_keeps_it_where_it_fails(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.hdf5", [sample(0, steps=4, size=16)])
    before = tree(tmp_path)
    (tmp_path / "b.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(UserError, match=r"b\.hdf5 is not a complete HDF5 file"):
        merge_hdf5(tmp_path / "a.hdf5", [tmp_path / "a.hdf5", tmp_path / "b.hdf5"])
    assert (tmp_path / "a.hdf5").read_bytes() == before["a.hdf5"]
