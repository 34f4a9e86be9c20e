"""Declared sizes are compared with the file's content before memory is allocated."""

import json
import resource
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apt_bench.core.errors import UserError
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.hdf5_writer import write_hdf5
from apt_bench.demos.lerobot_writer import LeRobotWriter
from apt_bench.demos.parquet_safe_file import episode_rows, read_table
from apt_bench.demos.video import Mp4Writer, read_mp4
from tests.clock import in_time
from tests.demos.samples import sample

T = 4
D = "data/demo_0"


@pytest.fixture(autouse=True)
def _cheap() -> Iterator[None]:
    """Each costs less than 5 s of CPU time and 500 MB."""
    memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert in_time(time.process_time() - began, 5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_hdf5(tmp_path / "x.hdf5", [sample(steps=T, size=16)])
    return tmp_path / "x.hdf5"


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("actions", (10**9, 7)),
        ("actions", (90_000, 7)),  # never written, though it would fit
        ("obs/agentview_rgb", (T, 4096, 4096, 3)),
        ("obs/agentview_rgb", (T, 960_000, 960_000, 3)),
        ("obs/joint_states", (T, 960_000)),
        ("states", (T, 10**12)),
        ("apt/segmentation/agentview", (T, 10**6, 10**6)),
    ],
)
@pytest.mark.parametrize("chunks", [None, True])
def test_an_array_of_fill_values_is_not_read(
    file: Path, key: str, shape: tuple[int, ...], chunks: bool | None
) -> None:
    with h5py.File(file, "a") as f:
        del f[f"{D}/{key}"]
        kind = "u1" if key[-3:] in ("rgb", "iew") else "f8"
        f[D].create_dataset(key, shape, kind, chunks=chunks)
    assert file.stat().st_size < 10**6
    with pytest.raises(UserError, match=r"x\.hdf5: data/demo_0"):
        open_demos(file)


def test_a_gzip_bomb_is_not_unpacked(file: Path) -> None:
    with h5py.File(file, "a") as f:
        del f[f"{D}/obs/agentview_rgb"]
        shape = (T, 4000, 4000, 3)
        images = f[D].create_dataset(
            "obs/agentview_rgb",
            shape,
            "u1",
            chunks=(1, 4000, 4000, 3),
            compression="gzip",
            compression_opts=9,
        )
        block = zlib.compress(bytes(4000 * 4000 * 3), 9)
        for t in range(T):
            images.id.write_direct_chunk((t, 0, 0, 0), block)
    with pytest.raises(UserError, match="at most 200 times what is stored"):
        open_demos(file)


def test_a_block_that_unpacks_to_more_than_its_size_is_not_unpacked(file: Path) -> None:
    with h5py.File(file, "a") as f:
        del f[f"{D}/actions"]
        data = f[D].create_dataset("actions", (T, 7), "f8", chunks=(T, 7), compression="gzip")
        data.id.write_direct_chunk((0, 0), zlib.compress(bytes(10**8), 9))
    demos = open_demos(file)
    with pytest.raises(
        UserError, match=r"demo_0/actions: the block at \(0, 0\) unpacks to more than 224 bytes"
    ):
        demos[0]


def test_blocks_that_are_larger_than_the_array_are_not_read(file: Path) -> None:
    with h5py.File(file, "a") as f:
        del f[f"{D}/actions"]
        f[D].create_dataset(
            "actions", data=np.zeros((T, 7)), chunks=(1_300_000, 7), maxshape=(None, 7), compression="gzip"
        )
    with pytest.raises(UserError, match="is stored in blocks of 72,800,000 bytes"):
        open_demos(file)


def test_gzip_twice_is_not_read(file: Path) -> None:
    with h5py.File(file, "a") as f:
        del f[f"{D}/actions"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((T, 7))
        plan.set_deflate(9)
        plan.set_deflate(9)
        space = h5py.h5s.create_simple((T, 7))
        data = h5py.h5d.create(f[D].id, b"actions", h5py.h5t.IEEE_F64LE, space, plan)
        data.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros((T, 7)))
    with pytest.raises(UserError, match="compressed with gzip twice"):
        open_demos(file)[0]


def test_images_that_pack_well_are_read(tmp_path: Path) -> None:
    """Black ones: 200 steps of 128 x 128 pixels pack to a thousandth."""
    import dataclasses

    demo = sample(steps=200, size=128)
    demo = dataclasses.replace(
        demo, images={"agentview": np.zeros((200, 128, 128, 3), np.uint8)}, segmentation={}
    )
    write_hdf5(tmp_path / "x.hdf5", [demo])
    assert (tmp_path / "x.hdf5").stat().st_size < 9_830_400 / 20
    assert not open_demos(tmp_path)[0].images["agentview"].any()


# --- LeRobotDataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    writer = LeRobotWriter(tmp_path / "set")
    writer.add(sample(steps=T))
    writer.close()
    return tmp_path / "set"


def test_a_video_of_other_sizes_is_not_unpacked_beyond_what_was_said(tmp_path: Path) -> None:
    film = Mp4Writer(tmp_path / "x.mp4", (2048, 2048), 20)
    film.add(np.zeros((3, 2048, 2048, 3), np.uint8))
    film.close()
    with pytest.raises(UserError, match=r"x\.mp4 is larger than its index declares"):
        read_mp4(tmp_path / "x.mp4", 0, 3, (64, 64))
    with pytest.raises(UserError, match=r"x\.mp4: one demonstration has 4,\d+,\d+,\d+ bytes"):
        read_mp4(tmp_path / "x.mp4", 0, 100_000, (128, 128))
    with pytest.raises(UserError, match="damaged or shorter"):
        read_mp4(tmp_path / "x.mp4", 0, 4, (2048, 2048))


@pytest.mark.parametrize("side", [0, -1, 4097, 960_000, 10**30])
def test_a_videos_declared_sides_are_bounded(root: Path, side: int) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.wrist"]["shape"] = [side, side, 3]
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"info\.json"):
        open_demos(root)


def test_a_table_of_very_many_rows_is_not_read(tmp_path: Path) -> None:
    """Constant columns of sixty million rows take some kilobytes."""
    path, rows = tmp_path / "x.parquet", 1_000_000
    table = pa.table({"episode_index": pa.array(np.zeros(rows, np.int64))})
    with pq.ParquetWriter(path, table.schema, compression="gzip") as writer:
        for _ in range(60):
            writer.write_table(table)
    assert path.stat().st_size < 400_000
    with pytest.raises(UserError, match=r"declared with 60,000,000 rows; at most 50,000,000"):
        episode_rows(path, 0, 5, [], [])
    with pytest.raises(UserError, match=r"declared with 60,000,000 rows; at most 1,000,000"):
        read_table(path)


def test_columns_that_pack_too_well_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": ["a" * 1_000_000 + str(i) for i in range(70)]}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="is declared with 70,"):
        read_table(path)
