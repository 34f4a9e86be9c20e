"""An HDF5 file cannot make its reader open another file, and the message names that file."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.demos.dataset import open_demos
from tests.demos.samples import sample
from tests.demos.test_hdf5 import assert_same, write_hdf5


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_hdf5(tmp_path / "x.hdf5", [sample(steps=4, size=16)])
    write_hdf5(tmp_path / "secret.hdf5", [sample(1, steps=4, size=16)])
    return tmp_path / "x.hdf5"


@pytest.mark.parametrize(
    "place",
    [
        "data",
        "data/demo_0",
        "data/demo_0/obs",
        "data/demo_0/actions",
        "data/demo_0/obs/agentview_rgb",
        "data/demo_0/states",
        "data/demo_0/apt/cameras",
        "data/demo_0/apt/segmentation/agentview",
    ],
)
def test_a_link_to_another_file_is_not_followed(file: Path, place: str) -> None:
    with h5py.File(file, "a") as f:
        del f[place]
        f[place] = h5py.ExternalLink(str(file.parent / "secret.hdf5"), place)
    with pytest.raises(UserError, match=rf"x\.hdf5: {place}.* is a link to another file"):
        list(open_demos(file))


def test_a_link_to_a_pipe_does_not_hang(file: Path) -> None:
    os.mkfifo(file.parent / "pipe")
    with h5py.File(file, "a") as f:
        del f["data/demo_0/actions"]
        f["data/demo_0/actions"] = h5py.ExternalLink(str(file.parent / "pipe"), "/")
    with pytest.raises(UserError, match="link to another file"):
        open_demos(file)


def test_a_link_within_the_file_is_followed_and_a_loop_of_them_ends(file: Path) -> None:
    with h5py.File(file, "a") as f:
        f.move("data/demo_0/obs/agentview_rgb", "elsewhere")
        f["data/demo_0/obs/agentview_rgb"] = h5py.SoftLink("/again")
        f["again"] = h5py.SoftLink("elsewhere")
    assert_same(open_demos(file)[0], sample(steps=4, size=16))
    with h5py.File(file, "a") as f:
        del f["again"]
        f["again"] = h5py.SoftLink("data/demo_0/obs/agentview_rgb")
    with pytest.raises(UserError, match="chain of more than 16"):
        open_demos(file)
    with h5py.File(file, "a") as f:
        del f["again"]
        f["again"] = h5py.ExternalLink(str(file.parent / "secret.hdf5"), "data/demo_0/obs/agentview_rgb")
    with pytest.raises(UserError, match="link to another file"):
        open_demos(file)


def test_numbers_that_lie_in_another_file_are_not_read(file: Path) -> None:
    (file.parent / "raw").write_bytes(np.ones((4, 7)).tobytes())
    with h5py.File(file, "a") as f:
        del f["data/demo_0/actions"]
        f["data/demo_0"].create_dataset(
            "actions", (4, 7), "f8", external=[(str(file.parent / "raw"), 0, h5py.h5f.UNLIMITED)]
        )
    with pytest.raises(UserError, match=r"demo_0/actions has its data in other files"):
        open_demos(file)


def test_a_virtual_array_is_not_read(file: Path) -> None:
    layout = h5py.VirtualLayout((4, 7), "f8")
    layout[:] = h5py.VirtualSource(str(file.parent / "secret.hdf5"), "data/demo_0/actions", (4, 7))
    with h5py.File(file, "a") as f:
        del f["data/demo_0/actions"]
        f["data/demo_0"].create_virtual_dataset("actions", layout)
    with pytest.raises(UserError, match=r"demo_0/actions has its data in other files"):
        open_demos(file)


@pytest.mark.parametrize("xml", ['<include file="/etc/passwd"/>', '<mesh name="m" file="../../secret.stl"/>'])
def test_files_that_a_scenes_xml_names_are_not_read(file: Path, xml: str) -> None:
    head = '<!DOCTYPE m [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    with h5py.File(file, "a") as f:
        del f["data/demo_0/apt/cameras"]
        f["data/demo_0"].attrs["model_file"] = f"<mujoco>{xml}<worldbody/></mujoco>"
    assert open_demos(file)[0].cameras == {}
    with h5py.File(file, "a") as f:
        f["data/demo_0"].attrs["model_file"] = f"{head}<mujoco>&e;</mujoco>"
    with pytest.raises(UserError, match="does not describe a scene: undefined entity"):
        open_demos(file)[0]
