"""Every array and attribute that is read from an HDF5 file is checked; the message names file, demonstration, key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.demonstration import DemoInfo
from apt_bench.demos.hdf5_writer import write_hdf5
from tests.demos.samples import sample
from tests.demos.test_hdf5 import libero_file

D = "data/demo_1"
T = 4
NAN = np.full((T, 7), np.nan)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_hdf5(tmp_path / "x.hdf5", [sample(i, steps=T, size=16) for i in range(2)])
    return tmp_path / "x.hdf5"


def images(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actions", np.zeros((T, 6))),
        ("actions", np.zeros((T, 7, 1))),
        ("actions", np.zeros(7)),
        ("actions", 3.0),
        ("actions", np.zeros((0, 7))),
        ("actions", NAN),
        ("actions", np.zeros((T, 7), complex)),
        ("actions", np.full((T, 7), b"x")),
        ("actions", np.zeros((T, 7), bool)),
        ("actions", h5py.Empty("f8")),
        ("obs/ee_pos", np.zeros((T, 2))),
        ("obs/ee_pos", np.zeros((T + 1, 3))),
        ("obs/ee_pos", np.zeros((T - 1, 3))),
        ("obs/ee_pos", np.full((T, 3), -np.inf)),
        ("obs/ee_pos", np.full((T, 3), 1e300)),
        ("obs/ee_ori", np.zeros((T, 5))),
        ("obs/ee_ori", np.zeros(T)),
        ("obs/ee_ori", np.zeros((T, 4))),  # quaternions without a length
        ("obs/gripper_states", np.zeros((T, 1))),
        ("obs/gripper_states", np.zeros((T, 2), "M8[s]").astype("i8").astype("S8")),
        ("obs/joint_states", np.zeros((T + 2, 7))),
        ("obs/joint_states", np.full((T, 7), np.nan)),
        ("obs/joint_states", np.zeros((T, 0))),
        ("obs/agentview_rgb", images(T, 16, 16)),
        ("obs/agentview_rgb", images(T, 16, 16, 4)),
        ("obs/agentview_rgb", images(T - 1, 16, 16, 3)),
        ("obs/agentview_rgb", images(T, 0, 16, 3)),
        ("obs/agentview_rgb", np.zeros((T, 16, 16, 3), np.float32)),
        ("obs/agentview_rgb", np.zeros((T, 16, 16, 3), np.uint16)),
        ("states", np.zeros((T, 2, 2))),
        ("states", np.full((T, 3), np.inf)),
        ("apt/cameras/wrist/K", np.eye(4)),
        ("apt/cameras/wrist/K", np.zeros((3, 3))),
        ("apt/cameras/wrist/pose", np.full((T, 4, 4), np.nan)),
        ("apt/cameras/wrist/pose", np.tile(2 * np.eye(4), (T, 1, 1))),
        ("apt/cameras/wrist/pose", np.tile(np.eye(4), (T + 1, 1, 1))),
        ("apt/segmentation/agentview", images(T, 16, 16, 3)),
    ],
    ids=lambda v: (
        v.replace("/", " ") if isinstance(v, str) else f"{getattr(v, 'shape', v)} {getattr(v, 'dtype', '')}"
    ),
)
def test_an_array_that_cannot_be_meant_is_named(file: Path, key: str, value: Any) -> None:
    with h5py.File(file, "a") as f:
        del f[f"{D}/{key}"]
        f[f"{D}/{key}"] = value
    with pytest.raises(UserError, match=r"x\.hdf5: data/demo_1") as error:
        list(open_demos(file))
    assert key.split("/")[-1] in str(error.value) or key.split("/")[0] in str(error.value)


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (D, "apt", "{"),
        (D, "apt", "[]"),
        (D, "apt", 3),
        (D, "apt", b"\xff\xfe"),
        (D, "apt", np.zeros(3)),
        (D, "segments", 3),
        (D, "segments", [1, 2]),
        (D, "num_samples", T + 1),
        (D, "num_samples", "many"),
        ("data", "format", "apt-bench/9"),
        ("data", "image_rotation", 90),
        ("data", "image_rotation", "up"),
        ("data", "observation_time", "sometime"),
        ("data", "observation_time", 1),
    ],
)
def test_an_attribute_that_cannot_be_meant_is_named(file: Path, place: str, name: str, value: Any) -> None:
    with h5py.File(file, "a") as f:
        f[place].attrs[name] = value
    with pytest.raises(UserError, match=rf"x\.hdf5.*{name.split('_')[-1]}"):
        list(open_demos(file))


CHANGES: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("steps", lambda i: i | {"steps": T + 1}),
    ("steps", lambda i: i | {"steps": 0}),
    ("steps", lambda i: i | {"steps": True}),
    ("steps", lambda i: i | {"steps": "4"}),
    ("episode", lambda i: i | {"episode": None}),
    ("instruction", lambda i: i | {"instruction": " "}),
    ("instruction", lambda i: i | {"instruction": "x" * 10_001}),
    ("later", lambda i: i | {"later": [[2, "b"], [1, "a"]]}),
    ("later", lambda i: i | {"later": [[T, "b"]]}),
    ("later", lambda i: i | {"later": 5}),
    ("later", lambda i: i | {"later": [["1", "b"]]}),
    ("success", lambda i: i | {"success": 1}),
    ("key", lambda i: i | {"key": {"suite": "libero"}}),
    ("init", lambda i: i | {"key": i["key"] | {"init": -1}}),
    ("control_hz", lambda i: i | {"control_hz": 0}),
    ("control_hz", lambda i: i | {"control_hz": 2.5}),
    ("image_every", lambda i: i | {"look_every": -1}),
    ("max_opening", lambda i: i | {"max_opening": 0}),
    ("scene", lambda i: i | {"scene": []}),
    ("episode", lambda i: {k: v for k, v in i.items() if k != "episode"}),
]


@pytest.mark.parametrize(("field", "change"), CHANGES)
def test_a_fact_that_cannot_be_meant_is_named(file: Path, field: str, change: Callable[..., Any]) -> None:
    import json

    with h5py.File(file, "a") as f:
        f[D].attrs["apt"] = json.dumps(change(json.loads(f[D].attrs["apt"])))
    with pytest.raises(UserError, match=rf"x\.hdf5: data/demo_1: attribute 'apt'.*{field.split('_')[0]}"):
        open_demos(file)


def test_what_a_newer_version_adds_is_left_alone() -> None:
    info = sample().info
    assert DemoInfo.from_json(info.to_json()[:-1] + ', "colour": 3}', "x") == info


def test_big_endian_and_half_precision_numbers_are_read(file: Path) -> None:
    with h5py.File(file, "a") as f:
        actions = f[f"{D}/actions"][:]
        del f[f"{D}/actions"], f[f"{D}/obs/ee_pos"]
        f[f"{D}/actions"] = actions.astype(">f8")
        f[f"{D}/obs/ee_pos"] = np.full((T, 3), 0.5, np.float16)
    demo = open_demos(file)[1]
    np.testing.assert_array_equal(demo.actions, actions)
    assert demo.actions.dtype == np.float64
    assert (demo.state[:, :3] == 0.5).all()


@pytest.mark.parametrize(
    "xml",
    [
        "<mujoco",
        "no XML",
        '<mujoco><worldbody><camera name="agentview" pos="1 2"/></worldbody></mujoco>',
        '<mujoco><worldbody><camera name="agentview" pos="a b c"/></worldbody></mujoco>',
        '<mujoco><worldbody><camera name="agentview" pos="nan 0 0"/></worldbody></mujoco>',
        '<mujoco><worldbody><camera name="agentview" quat="0 0 0 0"/></worldbody></mujoco>',
        '<mujoco><worldbody><camera name="agentview" fovy="0"/></worldbody></mujoco>',
        '<mujoco><worldbody><camera name="agentview" fovy="1e400"/></worldbody></mujoco>',
        "<mujoco>" + "<body>" * 5000 + "</body>" * 5000 + "</mujoco>",
    ],
)
def test_a_broken_scene_is_named_with_its_mend(tmp_path: Path, xml: str) -> None:
    libero_file(tmp_path / "x.hdf5", False, xml)
    with pytest.raises(
        UserError, match=r"x\.hdf5: data/demo_0: attribute 'model_file' does not describe a scene"
    ):
        open_demos(tmp_path / "x.hdf5")[0]


def test_two_arrays_of_one_camera_are_named(file: Path) -> None:
    with h5py.File(file, "a") as f:
        f[f"{D}/obs/wrist_rgb"] = images(T, 16, 16, 3)
    with pytest.raises(UserError, match="both of camera 'wrist'"):
        open_demos(file)


def test_a_block_that_was_not_written_is_not_read_as_zeros(file: Path) -> None:
    with h5py.File(file, "a") as f:
        del f[f"{D}/obs/agentview_rgb"]
        data = f[f"{D}/obs"].create_dataset("agentview_rgb", (T, 16, 16, 3), "u1", chunks=(1, 16, 16, 3))
        data[0] = 1
    with pytest.raises(UserError, match="1 of its 4 blocks"):
        list(open_demos(file))


def test_a_file_that_is_being_written_is_not_called_damaged(file: Path) -> None:
    import subprocess
    import sys

    hold = "import h5py, sys; f = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(UserError, match=r"open for writing in another process\. Try again") as error:
            open_demos(file)
        assert "copied" not in str(error.value)
        writer.communicate()
    assert len(open_demos(file)) == 2
