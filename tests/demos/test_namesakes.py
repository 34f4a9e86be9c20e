"""Different demonstrations with the same name are kept apart, and copies count once."""

import dataclasses
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.hdf5_writer import merge_hdf5, write_hdf5
from apt_bench.demos.lerobot_writer import LeRobotWriter
from tests.demos.samples import sample
from tests.demos.test_hdf5 import libero_file


def others(path: Path, *inits: int) -> None:
    """A file as another program would write it, without our facts."""
    write_hdf5(path, [sample(i, steps=5, size=16) for i in inits])
    with h5py.File(path, "a") as f:
        for demo in f["data"].values():
            del demo.attrs["apt"]


def test_two_recordings_of_the_same_file_name_are_both_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others(tmp_path / "monday/close_the_lid_demo.hdf5", 0, 1, 2)
    others(tmp_path / "tuesday/close_the_lid_demo.hdf5", 3, 4)
    demos = open_demos(tmp_path)
    assert len(demos) == 5
    assert {d.actions[0, 0] for d in demos} == {sample(i, steps=5).actions[0, 0] for i in range(5)}
    names = [i.episode for i in demos.infos]
    assert len(set(names)) == 5
    assert names[2] == "close_the_lid_demo/demo_2"  # it is alone with its name
    assert names[0].startswith("close_the_lid_demo/demo_0~")
    assert {d.info.instruction for d in demos} == {"close the lid"}
    assert capsys.readouterr().err == ""


def test_names_and_held_out_episodes_depend_on_neither_folders_nor_order(tmp_path: Path) -> None:
    for n, (a, b) in enumerate((("x", "y"), ("y", "x"))):
        others(tmp_path / f"{n}/{a}/lid_demo.hdf5", *range(6))
        others(tmp_path / f"{n}/{b}/lid_demo.hdf5", *range(6, 10))
    one, two = (open_demos(tmp_path / str(n)) for n in range(2))
    assert {i.episode for i in one.infos} == {i.episode for i in two.infos}
    assert one.fingerprint == two.fingerprint
    held = [{d.actions[0, 0] for d in demos.split(0.3)[1]} for demos in (one, two)]
    assert held[0] == held[1]
    assert len(held[0]) == 3


def test_copies_count_once_whatever_they_are_called_and_their_number_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others(tmp_path / "a/lid_demo.hdf5", 0, 1, 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copy(tmp_path / "a/lid_demo.hdf5", tmp_path / "lid.hdf5")
    demos = open_demos(tmp_path)
    assert [i.episode for i in demos.infos] == [f"lid/demo_{i}" for i in range(3)]
    assert "6 of 9 demonstrations are byte-for-byte copies" in capsys.readouterr().err


def test_another_sentence_or_another_image_is_another_demonstration(tmp_path: Path) -> None:
    demo = sample(steps=5, size=16)
    images = {k: v.copy() for k, v in demo.images.items()}
    images["wrist"][4, 15, 15, 2] ^= 1
    later = dataclasses.replace(demo.info, later=((2, "now the other"),))
    late = demo.actions.copy()
    late[4, 6] = -late[4, 6]
    for i, other in enumerate(
        (
            demo,
            dataclasses.replace(demo, images=images),
            dataclasses.replace(demo, info=later),
            dataclasses.replace(demo, actions=late),
        )
    ):
        write_hdf5(tmp_path / f"{i}.hdf5", [other])
    demos = open_demos(tmp_path)
    assert len(demos) == len({i.episode for i in demos.infos}) == 4
    assert {i.key for i in demos.infos} == {demo.info.key}


def test_merging_keeps_namesakes_drops_copies_and_keeps_others_sentences(tmp_path: Path) -> None:
    others(tmp_path / "a/lid_demo.hdf5", 0, 1)
    others(tmp_path / "b/lid_demo.hdf5", 1, 2, 3)
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    merge_hdf5(tmp_path / "all.hdf5", sorted(tmp_path.rglob("lid_demo.hdf5")))
    demos = open_demos(tmp_path / "all.hdf5")
    assert len(demos) == 4
    assert {d.info.instruction for d in demos} == {"lid"}
    assert {d.actions[0, 0] for d in demos} == {sample(i, steps=5).actions[0, 0] for i in range(4)}


def test_files_of_two_conventions_do_not_merge(tmp_path: Path) -> None:
    for late in (False, True):
        libero_file(tmp_path / f"{late}.hdf5", late)
    with pytest.raises(UserError, match="differ in image orientation or observation time"):
        merge_hdf5(tmp_path / "all.hdf5", [tmp_path / "False.hdf5", tmp_path / "True.hdf5"])
    assert not (tmp_path / "all.hdf5").exists()


def test_two_data_sets_of_the_same_folder_name_are_both_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet as pq

    for day, inits in (("monday", (0, 1)), ("tuesday", (2,))):
        root = tmp_path / day / "lid"
        writer = LeRobotWriter(root)
        for init in inits:
            writer.add(sample(init, steps=5))
        writer.close()
        path = root / "meta/episodes/chunk-000/file-000.parquet"
        pq.write_table(pq.read_table(path).drop_columns(["apt"]), path)
    shutil.copytree(tmp_path / "monday", tmp_path / "copy")
    demos = open_demos([tmp_path / "monday/lid", tmp_path / "tuesday/lid", tmp_path / "copy/lid"])
    assert len({i.episode for i in demos.infos}) == len(demos) == 3
    assert {d.actions[0, 0] for d in demos.only(())} == {sample(i, steps=5).actions[0, 0] for i in range(3)}
    assert "2 of 5 demonstrations are byte-for-byte copies" in capsys.readouterr().err


def test_one_file_given_twice_or_by_a_link_is_read_once(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "x.hdf5", [sample(steps=5, size=16)])
    (tmp_path / "y.hdf5").symlink_to(tmp_path / "x.hdf5")
    assert len(open_demos([tmp_path, tmp_path / "x.hdf5", tmp_path / "y.hdf5"])) == 1


def test_copies_are_found_without_reading_images_of_different_episodes(tmp_path: Path) -> None:
    """Images are read only where everything else is equal: their blocks may be damaged."""
    write_hdf5(tmp_path / "x.hdf5", [sample(i, steps=5, size=16) for i in range(2)])
    content = (tmp_path / "x.hdf5").read_bytes()
    with h5py.File(tmp_path / "x.hdf5") as f:
        where = f["data/demo_0/obs/agentview_rgb"].id.get_chunk_info(0)
    broken = bytearray(content)
    broken[where.byte_offset : where.byte_offset + where.size] = bytes(where.size)
    (tmp_path / "x.hdf5").write_bytes(broken)
    demos = open_demos(tmp_path)
    assert np.array_equal(demos.only(())[0].actions, sample(0, steps=5).actions)
    with pytest.raises(UserError, match=r"demo_0/obs/agentview_rgb is damaged"):
        demos[0]
