"""LIBERO's HDF5 layout (robomimic's convention): one file per task, one group `data/demo_i` per demonstration.

    data               attributes: env_args, problem_info (language_instruction), macros_image_convention, num_demos,
                       total
    data/demo_i        attributes: num_samples, init_state
      actions (T, 7)  states (T, n)  robot_states (T, 9)  rewards, dones (T,)
      obs/agentview_rgb, eye_in_hand_rgb (T, H, W, 3)  ee_pos, ee_ori (T, 3)  ee_states (T, 6)  gripper_states (T, 2)
          joint_states (T, 7)

Ours add, under `data/demo_i/apt`: achieved_pose, commanded_pose (T, 4, 4), gripper_target (T,), cameras/NAME/{K, pose},
segmentation/NAME; and attributes for facts that LIBERO's files do not state:

- `image_rotation`: angle in degrees between the stored images and those that a policy receives. 180, as in LIBERO's
  files.
- `observation_time`: `before_action` in ours. LIBERO's own script (scripts/create_dataset.py) stores in row t the
  observation AFTER action t; files regenerated for OpenVLA store the one before. Without the attribute the reader finds
  out from `states`, which always hold the state before the action.

The reader returns the same `Demonstration` for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.core.errors import UserError
from apt_bench.demos.demonstration import Demonstration
from apt_bench.demos.duplicates import without_doubles
from apt_bench.demos.hdf5_new_file import new_hdf5
from apt_bench.demos.hdf5_reader import AFTER, BEFORE, FORMAT, RGB, index_hdf5
from apt_bench.demos.hdf5_safe_file import open_hdf5

IMAGE_CHUNK = (16, 32, 32)
"""Steps and pixels of one compressed block. A still background repeats within gzip's window of 32 KiB: third-person
frames shrink to 7 % of their size (with whole frames as blocks: 51 %), and reading a whole demonstration is three times
as fast. Reading a single frame takes 1 to 3 ms (128 pixels)."""


def write_hdf5(path: Path, demos: Iterable[Demonstration]) -> None:
    """Write demonstrations into a new file, which exists completely or not at all.

    Args:
        path: The file.
        demos: The demonstrations. They should share one instruction, because LIBERO's readers take it from the file;
            our reader uses each demonstration's own.

    Raises:
        OSError: The file cannot be written.
    """
    with new_hdf5(path) as file:
        data = file.create_group("data")
        for i, demo in enumerate(demos):
            _write_demo(data.create_group(f"demo_{i}"), demo)
            if not i:
                data.attrs.update(_file_attributes(demo))
        _count(data)


def merge_hdf5(path: Path, sources: Iterable[Path]) -> None:
    """Copy demonstrations into a new file without recompressing them, ordered by their initial states' numbers.

    Copies that are equal byte for byte are written once.

    Args:
        path: The file; it may be one of `sources`.
        sources: Files to copy from.

    Raises:
        UserError: The sources differ in the orientation of images or in when rows were observed.
    """
    entries = [entry for source in sources for entry in index_hdf5(source)]
    for entry in entries:
        if (entry.late, entry.rotated) != (entries[0].late, entries[0].rotated):
            raise UserError(
                f"{entry.path} and {entries[0].path} differ in image orientation or observation time "
                "(attributes image_rotation, observation_time). Give `open_demos` both files instead."
            )
    kept = sorted(without_doubles(entries), key=lambda e: e.info.key.init if e.info.key else 0)
    with new_hdf5(path) as file:
        data = file.create_group("data")
        for i, entry in enumerate(kept):
            with open_hdf5(entry.path) as other:
                if not i:
                    data.attrs.update(other.group("data").attributes())
                    data.attrs["image_rotation"] = 180 * entry.rotated
                    data.attrs["observation_time"] = AFTER if entry.late else BEFORE
                other.copy(f"data/{entry.name}", data, f"demo_{i}")
                group = data[f"demo_{i}"]
                group.attrs["apt"] = (
                    entry.info.to_json()
                )  # files of others have the instruction in their name
                group.attrs["num_samples"] = len(group["actions"])
        _count(data)


def _count(data: h5py.Group) -> None:
    data.attrs["num_demos"] = len(data)
    data.attrs["total"] = sum(int(d.attrs["num_samples"]) for d in data.values())


def _file_attributes(demo: Demonstration) -> dict[str, Any]:
    info = demo.info
    env_args = {
        "type": 1,
        "env_name": info.scene.get("env", ""),
        "env_kwargs": {
            **info.scene.get("args", {}),
            "control_freq": info.control_hz,
            "controller": "OSC_POSE",
        },
    }
    return {
        "format": FORMAT,
        "env_name": env_args["env_name"],
        "env_args": json.dumps(env_args),
        "problem_info": json.dumps({"language_instruction": info.instruction}),
        "macros_image_convention": "opengl",
        "image_rotation": 180,
        "observation_time": BEFORE,
    }


def _write_demo(group: h5py.Group, demo: Demonstration) -> None:
    T, state = len(demo), demo.state.astype(np.float64)
    obs, extra = group.create_group("obs"), group.create_group("apt")
    done = np.zeros(T, np.uint8)
    done[-1:] = demo.info.success
    quaternion = Rotation.from_rotvec(state[:, 3:6]).as_quat()
    arrays = {
        "actions": demo.actions,
        "dones": done,
        "rewards": done,
        "robot_states": np.concatenate([state[:, 6:], state[:, :3], quaternion], 1),
        "obs/ee_pos": state[:, :3],
        "obs/ee_ori": state[:, 3:6],
        "obs/ee_states": state[:, :6],
        "obs/gripper_states": state[:, 6:],
        "apt/achieved_pose": demo.achieved,
        "apt/commanded_pose": demo.commanded,
        "apt/gripper_target": demo.gripper_target,
    }
    if demo.joints is not None:
        arrays["obs/joint_states"] = demo.joints
    if demo.sim_states is not None:
        arrays["states"] = demo.sim_states
        group.attrs["init_state"] = demo.sim_states[0]
    for name, array in arrays.items():
        group.create_dataset(name, data=array, compression="gzip", shuffle=True)
    for name, images in demo.images.items():
        _write_images(obs, RGB.get(name, f"{name}_rgb"), images[:, ::-1, ::-1])
    for name, track in demo.cameras.items():
        camera = extra.create_group(f"cameras/{name}")
        camera["K"] = track.K
        still = bool((track.pose == track.pose[0]).all())
        camera["pose"] = track.pose[0] if still else track.pose
    for name, labels in demo.segmentation.items():
        _write_images(extra, f"segmentation/{name}", labels[:, ::-1, ::-1])
    group.attrs["num_samples"] = T
    group.attrs["language_instruction"] = demo.info.instruction
    group.attrs["apt"] = demo.info.to_json()
    if demo.segments:
        group.attrs["segments"] = list(demo.segments)


def _write_images(group: h5py.Group, name: str, images: np.ndarray) -> None:
    chunk = tuple(min(c, n) for c, n in zip(IMAGE_CHUNK, images.shape, strict=False)) + images.shape[3:]
    group.create_dataset(name, data=images, chunks=chunk, compression="gzip", compression_opts=4)
