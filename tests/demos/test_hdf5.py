import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.demonstration import Demonstration
from apt_bench.demos.hdf5_writer import merge_hdf5, write_hdf5
from tests.demos.samples import sample


def assert_same(a: Demonstration, b: Demonstration) -> None:
    assert a.info == b.info
    for name in ("state", "actions", "joints", "sim_states", "achieved", "commanded"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for one, two in ((a.images, b.images), (a.segmentation, b.segmentation)):
        assert set(one) == set(two)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    for name, track in a.cameras.items():
        np.testing.assert_array_equal(track.K, b.cameras[name].K)
        np.testing.assert_array_equal(track.pose, b.cameras[name].pose)
    assert a.segments == b.segments


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    demos = [sample(0), sample(1, steps=9)]
    write_hdf5(tmp_path / "x_demo.hdf5", demos)
    found = open_demos(tmp_path / "x_demo.hdf5")
    assert len(found) == 2
    for written, read in zip(demos, found, strict=True):
        assert_same(written, read)
    assert found.only(())[0].images == {}
    assert set(open_demos(tmp_path, cameras=["wrist"])[1].images) == {"wrist"}


def test_layout_is_liberos(tmp_path: Path) -> None:
    """Read as LIBERO's and OpenVLA's scripts do: plain h5py, images turned by 180 degrees by the reader."""
    demo = sample()
    write_hdf5(tmp_path / "x_demo.hdf5", [demo])
    with h5py.File(tmp_path / "x_demo.hdf5") as file:
        data = file["data"]
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == demo.info.instruction
        assert "env_name" in json.loads(data.attrs["env_args"])
        assert (data.attrs["num_demos"], data.attrs["total"]) == (1, len(demo))
        group = data["demo_0"]
        assert group.attrs["num_samples"] == len(demo)
        np.testing.assert_array_equal(group["obs/agentview_rgb"][:][:, ::-1, ::-1], demo.images["agentview"])
        np.testing.assert_array_equal(group["obs/eye_in_hand_rgb"][3][::-1, ::-1], demo.images["wrist"][3])
        shapes = {k: v.shape[1:] for k, v in group["obs"].items() if not k.endswith("rgb")}
        assert shapes == {
            "ee_pos": (3,),
            "ee_ori": (3,),
            "ee_states": (6,),
            "gripper_states": (2,),
            "joint_states": (7,),
        }
        assert group["robot_states"].shape[1] == 9
        np.testing.assert_array_equal(group["states"][:], demo.sim_states)
        assert group["dones"][:].tolist() == group["rewards"][:].tolist() == [0] * (len(demo) - 1) + [1]
        np.testing.assert_array_equal(group["apt/commanded_pose"][:], demo.commanded)


def libero_file(path: Path, late: bool, xml: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A file as LIBERO's scripts/create_dataset.py (late) or OpenVLA's regeneration writes it. Joint j of row t encodes
    the time of its observation: 10 t + j at the beginning of step t."""
    T = 6
    when = np.arange(T + 1)[:, None] * 10.0 + np.arange(7)
    states = np.concatenate([np.arange(T)[:, None] * 0.05, when[:T], np.zeros((T, 20))], 1)
    seen = when[1:] if late else when[:T]
    images = np.zeros((T, 32, 32, 3), np.uint8)
    images[:, -1, -1] = (seen[:, :1] + 1).astype(np.uint8)  # upright: the top left corner
    actions = np.arange(T * 7).reshape(T, 7) / 100
    with h5py.File(path, "w") as file:
        group = file.create_group("data/demo_0")
        if late:
            file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "another wording"})
        if xml:
            group.attrs["model_file"] = xml
        group["actions"], group["states"] = actions, states
        obs = group.create_group("obs")
        obs["joint_states"], obs["agentview_rgb"], obs["eye_in_hand_rgb"] = seen, images, images
        obs["ee_pos"], obs["ee_ori"], obs["gripper_states"] = seen[:, :3], np.zeros((T, 3)), np.zeros((T, 2))
    return when, actions


@pytest.mark.parametrize("late", [True, False])
def test_others_rows_are_paired_with_the_action_that_follows(tmp_path: Path, late: bool) -> None:
    path = tmp_path / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"
    when, actions = libero_file(path, late)
    demo = open_demos(path)[0]
    first = int(late)  # nobody saw what came before the first action
    assert len(demo) == demo.info.steps == 6 - first
    assert demo.info.instruction == "turn on the stove"
    assert demo.info.key is None
    np.testing.assert_array_equal(demo.actions, actions[first:])
    np.testing.assert_array_equal(demo.joints, when[first:6])
    np.testing.assert_array_equal(demo.sim_states[:, 1:8], when[first:6])
    np.testing.assert_array_equal(demo.images["agentview"][:, 0, 0, 0], when[first:6, 0] + 1)


def test_liberos_xml_gives_the_cameras(tmp_path: Path) -> None:
    xml = """<mujoco><worldbody>
      <camera name="agentview" pos="1 2 3" quat="1 0 0 0" fovy="45"/>
      <body name="robot0_base" pos="-1 0 0"><body name="robot0_right_hand" pos="0 0 9" quat="0 1 0 0">
        <camera name="robot0_eye_in_hand" pos="0.05 0 0" quat="0 0.707108 0.707108 0" fovy="90"/>
        <body name="gripper0_right_gripper" quat="0.707107 0 0 -0.707107"><body name="gripper0_eef" pos="0 0 0.097">
          <site name="gripper0_grip_site"/></body></body>
      </body></body></worldbody></mujoco>"""
    libero_file(tmp_path / "x_demo.hdf5", False, xml)
    demo = open_demos(tmp_path / "x_demo.hdf5")[0]
    side = demo.cameras["agentview"]
    np.testing.assert_allclose(side.pose[2], [[1, 0, 0, 1], [0, -1, 0, 2], [0, 0, -1, 3], [0, 0, 0, 1]])
    np.testing.assert_allclose(side.K[0], [-38.627417, 0, 15.5])
    # the hand (here with the world's axes) lies 9.7 cm behind the grip site, the camera 5 cm beside the hand
    np.testing.assert_allclose(demo.cameras["wrist"].pose[1, :3, 3], demo.state[1, :3] + [0.05, 0, -0.097])
    np.testing.assert_allclose(demo.cameras["wrist"].K[1], [0, 16, 15.5])


def test_merging_orders_by_initial_state_and_drops_doubles(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        write_hdf5(tmp_path / f"loose/{i}.hdf5", [sample(i)])
    target = tmp_path / "task_demo.hdf5"
    merge_hdf5(target, sorted((tmp_path / "loose").iterdir())[1:])
    merge_hdf5(target, [target, *(tmp_path / "loose").iterdir()])
    found = open_demos(target)
    assert [d.info.key.init for d in found if d.info.key] == [0, 1, 2]
    assert_same(found[2], sample(2))
    assert len(open_demos(tmp_path)) == 3  # loose files and the merged one hold the same episodes
    assert not list(tmp_path.rglob("*.part"))


def test_bad_files_are_named_with_their_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No file or folder"):
        open_demos(tmp_path / "none.hdf5")
    with pytest.raises(UserError, match="holds no demonstrations"):
        open_demos(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="neither HDF5"):
        open_demos(tmp_path / "notes.txt")
    write_hdf5(tmp_path / "a.hdf5", [sample()])
    content = (tmp_path / "a.hdf5").read_bytes()
    (tmp_path / "b.hdf5").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"b\.hdf5 is not a complete HDF5 file"):
        open_demos(tmp_path / "b.hdf5")
    with h5py.File(tmp_path / "c.hdf5", "w") as file:
        file["other"] = 1
    with pytest.raises(UserError, match="no group 'data'"):
        open_demos(tmp_path / "c.hdf5")
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 7))
    with pytest.raises(UserError, match="no 'obs/ee_pos'"):
        open_demos(tmp_path / "d.hdf5")


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    def demos():  # type: ignore[no-untyped-def]
        yield sample()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_hdf5(tmp_path / "x.hdf5", demos())
    assert not list(tmp_path.iterdir())


def test_split_is_disjoint_whole_and_blind_to_order(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "x.hdf5", [sample(i, steps=2, size=16) for i in range(20)])
    write_hdf5(tmp_path / "y.hdf5", [sample(i, steps=2, size=16) for i in reversed(range(20))])
    train, held = open_demos(tmp_path / "x.hdf5").split(0.1)
    assert (len(train), len(held)) == (18, 2)
    names = [{i.episode for i in part.infos} for part in (train, held)]
    assert not names[0] & names[1]
    assert {i.episode for i in open_demos(tmp_path / "y.hdf5").split(0.1)[1].infos} == names[1]
    assert len(open_demos(tmp_path / "x.hdf5").split(0)[1]) == 0
    with pytest.raises(UserError, match="held-out"):
        train.split(1.0)
