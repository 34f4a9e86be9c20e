"""What is found below a folder."""

import os
from pathlib import Path

import pytest

from apt_bench.core.errors import UserError
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.hdf5_writer import write_hdf5
from apt_bench.demos.lerobot_writer import LeRobotWriter
from tests.demos.samples import sample


def lerobot(root: Path, *inits: int) -> None:
    writer = LeRobotWriter(root)
    for init in inits:
        writer.add(sample(init, steps=4))
    writer.close()


def test_a_folder_of_several_data_sets_of_both_kinds_is_read(tmp_path: Path) -> None:
    lerobot(tmp_path / "a/one", 0, 1)
    lerobot(tmp_path / "b/deep/two", 2)
    write_hdf5(tmp_path / "c/x.hdf5", [sample(3, steps=4, size=16)])
    write_hdf5(tmp_path / "UPPER.HDF5", [sample(4, steps=4, size=16)])
    demos = open_demos(tmp_path)
    assert {i.key.init for i in demos.infos if i.key} == set(range(5))
    assert len(demos.only(())[0].actions) == 4
    assert len(open_demos([tmp_path / "a", tmp_path / "c"])) == 3


@pytest.mark.parametrize(
    "name",
    [
        "._x.hdf5",
        ".x.hdf5",
        "~$x.hdf5",
        "__MACOSX/x.hdf5",
        ".Trash/x.hdf5",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
    ],
)
def test_what_operating_systems_leave_behind_is_skipped(tmp_path: Path, name: str) -> None:
    write_hdf5(tmp_path / "x.hdf5", [sample(steps=4, size=16)])
    lerobot(tmp_path / "set", 1)
    for folder in (tmp_path, tmp_path / "set/meta/episodes/chunk-000"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\5\26\7Mac OS X")
    (tmp_path / "set/meta/episodes/chunk-000/._file-000.parquet").write_bytes(b"\0\5\26\7")
    assert len(open_demos(tmp_path)) == 2


def test_links_are_followed_once(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "elsewhere/x.hdf5", [sample(steps=4, size=16)])
    home = tmp_path / "demos"
    home.mkdir()
    (home / "a").symlink_to(tmp_path / "elsewhere")
    (home / "b").symlink_to(tmp_path / "elsewhere")
    (home / "up").symlink_to(home)
    (tmp_path / "elsewhere/up").symlink_to(home)
    assert len(open_demos(home)) == 1
    (home / "gone.hdf5").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"No file .*gone\.hdf5"):
        open_demos(home)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_not_skipped(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "x.hdf5", [sample(steps=4, size=16)])
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="Cannot read the folder"):
        open_demos(tmp_path)


def test_a_pipe_or_a_file_name_that_is_not_utf8_does_no_harm(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.hdf5")
    with pytest.raises(UserError, match="No file"):
        open_demos(tmp_path)
    (tmp_path / "pipe.hdf5").unlink()
    write_hdf5(tmp_path / "x.hdf5", [sample(steps=4, size=16)])
    import h5py

    with h5py.File(tmp_path / "x.hdf5", "a") as f:
        del f["data/demo_0"].attrs["apt"]
    os.rename(tmp_path / "x.hdf5", os.fsencode(tmp_path) + b"/put_\xff_it\n_demo.hdf5")
    demos = open_demos(tmp_path)
    assert demos.infos[0].instruction == "put \\udcff it\\x0a"
    assert len(demos.split(0.5)[0]) == 1
    assert demos.fingerprint
