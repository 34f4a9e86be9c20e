"""Small real files of each kind, damaged: reading them ends, quickly, in demonstrations or in a UserError that names
the file. `--hypothesis-profile=long` tries many more."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_bench.core.errors import UserError
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.hdf5_writer import write_hdf5
from apt_bench.demos.lerobot_writer import LeRobotWriter
from tests.clock import in_time
from tests.demos.samples import sample
from tests.demos.test_hdf5 import libero_file

RANDOM = st.randoms(use_true_random=False)
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    3.5,
    2**62,
    "",
    "x",
    "../x",
    "\x1b[2J",
    [],
    [1, "x", None],
    {},
    {"a": 1},
)
XML = '<mujoco><worldbody><camera name="agentview" pos="1 2 3"/></worldbody></mujoco>'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("whole")
    write_hdf5(home / "ours.hdf5", [sample(i, steps=4, size=16) for i in range(2)])
    libero_file(home / "others.hdf5", True, XML)
    writer = LeRobotWriter(home / "set")
    writer.add(sample(0, steps=4, size=16))
    writer.close()
    return home


def read(path: Path, named: str) -> None:
    began = time.process_time()
    try:
        for demo in open_demos(path):
            assert np.isfinite(demo.actions).all()
            assert np.isfinite(demo.state).all()
            assert len(demo.instructions) == len(demo) == demo.info.steps
    except UserError as error:
        if named not in str(error):
            raise AssertionError("the message does not name the file") from error
    assert in_time(time.process_time() - began, 5)


def damage(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    if rng.random() < 0.1:
        return bytes(data[: rng.randrange(len(data))])
    # most of a small file is data; its structure stands at the beginning
    for _ in range(rng.choice((1, 1, 2, 8, 30))):
        at = rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 8000))
        width = rng.choice((1, 1, 1, 4, 8))
        data[at : at + width] = rng.choice(
            (b"\0" * width, b"\xff" * width, rng.randbytes(width), bytes([data[at] ^ 1 << rng.randrange(8)]))
        )
    return bytes(data)


@pytest.mark.parametrize("kind", ["ours", "others"])
@given(rng=RANDOM)
def test_an_hdf5_file_with_damaged_bytes(home: Path, kind: str, rng: random.Random) -> None:
    path = home / "damaged.hdf5"
    path.write_bytes(damage(rng, (home / f"{kind}.hdf5").read_bytes()))
    read(path, "damaged.hdf5")
    path.unlink()


@given(rng=RANDOM)
def test_an_hdf5_file_with_another_array_or_attribute(home: Path, rng: random.Random) -> None:
    path = home / "changed.hdf5"
    shutil.copy(home / "ours.hdf5", path)
    with h5py.File(path, "a") as f:
        keys: list[str] = []
        f.visit(keys.append)
        key = rng.choice([k for k in keys if k != "data"])
        shape = tuple(rng.choice((0, 1, 3, 4, 7, 8, 16)) for _ in range(rng.randrange(5)))
        kind = rng.choice(("f2", "f4", "f8", ">f8", "u1", "i8", "c8", "S3", "?", "f8,i4"))
        if rng.random() < 0.7:
            del f[key]
            f[key] = np.full(shape, rng.choice((0, 1, 255)) if kind != "S3" else b"x").astype(kind)
        elif rng.random() < 0.5:
            f[key].attrs[rng.choice(("apt", "num_samples", "segments", "language_instruction"))] = np.zeros(
                shape, "f4"
            )
        else:
            name = rng.choice(("format", "image_rotation", "observation_time", "apt"))
            f["data"].attrs[name] = rng.choice(("x", 3, 1.5, np.zeros(3), b"\xff"))
    read(path, "changed.hdf5")


@given(rng=RANDOM)
def test_a_fact_of_a_demonstration_exchanged_for_an_odd_one(home: Path, rng: random.Random) -> None:
    path = home / "fact.hdf5"
    shutil.copy(home / "ours.hdf5", path)
    with h5py.File(path, "a") as f:
        info = json.loads(f["data/demo_0"].attrs["apt"])
        info[rng.choice(list(info))] = rng.choice(ODD)
        f["data/demo_0"].attrs["apt"] = json.dumps(info)
    read(path, "fact.hdf5")


def copied(home: Path, name: str) -> Path:
    """A fresh copy of the dataset, in a folder of this name."""
    shutil.rmtree(home / name, ignore_errors=True)
    return Path(shutil.copytree(home / "set", home / name))


@given(rng=RANDOM)
def test_a_dataset_with_damaged_bytes(home: Path, rng: random.Random) -> None:
    root = copied(home, "damaged")
    path = rng.choice(sorted(p for p in root.rglob("*") if p.is_file()))
    path.write_bytes(damage(rng, path.read_bytes()))
    read(root, str(root))


@given(rng=RANDOM)
def test_a_dataset_with_an_odd_value_in_its_info(home: Path, rng: random.Random) -> None:
    root = copied(home, "odd")
    info = json.loads((root / "meta/info.json").read_text())
    place = info
    while isinstance(place, dict) and place:
        key = rng.choice(sorted(place))
        if rng.random() < 0.4 or not isinstance(place[key], dict):
            place[key] = rng.choice(ODD)
            break
        place = place[key]
    (root / "meta/info.json").write_text(json.dumps(info))
    read(root, str(root))


@given(rng=RANDOM)
def test_a_dataset_with_a_column_dropped_or_retyped(home: Path, rng: random.Random) -> None:
    root = copied(home, "column")
    path = root / rng.choice(("data", "meta/episodes")) / "chunk-000/file-000.parquet"
    table = pq.read_table(path)
    name = rng.choice(table.column_names)
    at, rows = table.column_names.index(name), len(table)
    odd: tuple[Any, ...] = (
        pa.array([rng.choice((0, -1, 2**62))] * rows),
        pa.array([float("nan")] * rows),
        pa.array(["x"] * rows),
        pa.array([[0.0] * rng.choice((1, 6, 7, 8))] * rows),
        pa.array([None] * rows, pa.int64()),
        pa.array([{"a": 1}] * rows),
        pa.array([[["x"]]] * rows),
        pa.array([b"\xff"] * rows),
    )
    changed = (
        table.drop_columns([name]) if rng.random() < 0.3 else table.set_column(at, name, rng.choice(odd))
    )
    pq.write_table(changed, path)
    read(root, str(root))
