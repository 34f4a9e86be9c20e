"""LIBERO's HDF5 layout (robomimic's convention): one file per task, one group `data/demo_i` per demonstration.

    data               attributes: env_args, problem_info (language_instruction), macros_image_convention, num_demos,
                       total
    data/demo_i        attributes: num_samples, init_state
      actions (T, 7)  states (T, n)  robot_states (T, 9)  rewards, dones (T,)
      obs/agentview_rgb, eye_in_hand_rgb (T, H, W, 3)  ee_pos, ee_ori (T, 3)  ee_states (T, 6)  gripper_states (T, 2)
          joint_states (T, 7)

Ours add, under `data/demo_i/apt`: achieved_pose, commanded_pose (T, 4, 4), gripper_target (T,), cameras/NAME/{K, pose},
segmentation/NAME; and attributes that say what LIBERO leaves to the reader's knowledge:

- `image_rotation`: degrees by which the stored images are turned against what a policy gets. 180, as LIBERO's own.
- `observation_time`: `before_action` in ours. LIBERO's own script (scripts/create_dataset.py) stores in row t what was
  seen AFTER action t; files regenerated for OpenVLA what was seen before. Files that do not say are tested: `states`
  always holds the state before.

The reader gives the same `Demonstration` for all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.core.errors import UserError
from apt_bench.demos.format import CameraTrack, DemoInfo, Demonstration
from apt_bench.demos.mjcf import cameras_from_mjcf
from apt_bench.envs.base import AGENTVIEW, WRIST

RGB = {AGENTVIEW: "agentview_rgb", WRIST: "eye_in_hand_rgb"}
"""Camera -> LIBERO's dataset; others are `NAME_rgb`."""

FORMAT = "apt-bench/1"

IMAGE_CHUNK = (16, 32, 32)
"""Steps and pixels of one compressed block: a still background repeats within gzip's window of 32 KiB. Third-person
frames take 7 % of their size (whole frames as blocks: 51 %) and reading a whole demonstration is three times as fast;
one single frame takes 1 to 3 ms (128 pixels)."""


def write_hdf5(path: Path, demos: Iterable[Demonstration]) -> None:
    """A new file with these demonstrations, there as a whole or not at all. They should share one instruction, as
    LIBERO's readers take it from the file; ours reads each demonstration's own."""
    with _replacing(path) as part, h5py.File(part, "w") as file:
        data = file.create_group("data")
        for i, demo in enumerate(demos):
            _write_demo(data.create_group(f"demo_{i}"), demo)
            if not i:
                data.attrs.update(_file_attributes(demo))
        _count(data)


def merge_hdf5(path: Path, sources: Iterable[Path]) -> None:
    """A new file at `path` with all demonstrations of `sources` (`path` may be one), copied without recompressing, in
    the order of their tasks' initial states. Of one episode only the first is kept."""
    found: dict[str, tuple[Path, str, int]] = {}
    for source in sources:
        for entry in index_hdf5(source):
            info = entry.info
            found.setdefault(info.episode, (source, entry.name, info.key.init if info.key else 0))
    with _replacing(path) as part, h5py.File(part, "w") as file:
        data = file.create_group("data")
        for i, (source, name, _) in enumerate(sorted(found.values(), key=lambda f: f[2])):
            with h5py.File(source) as other:
                if not i:
                    data.attrs.update(other["data"].attrs)
                other.copy(f"data/{name}", data, f"demo_{i}")
        _count(data)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path beside the wanted one, moved there on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
        "observation_time": "before_action",
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


@dataclass(frozen=True)
class Hdf5Entry:
    """One demonstration in a file, not read yet."""

    path: Path
    name: str  # demo_i
    info: DemoInfo
    late: bool  # row t was observed after action t
    rotated: bool  # images are stored upside down

    def load(self, cameras: Iterable[str] | None = None) -> Demonstration:
        """Read it; `cameras`: only these images (None = all, () = none)."""
        with _open(self.path) as file:
            return self._read(file[f"data/{self.name}"], None if cameras is None else set(cameras))

    def _read(self, group: h5py.Group, wanted: set[str] | None) -> Demonstration:
        T, shift = self.info.steps, int(self.late)
        obs = group["obs"]
        names = {v: k for k, v in RGB.items()}
        seen = {names.get(n, n[:-4]): obs[n] for n in obs if n.endswith("_rgb")}
        images = {n: self._upright(d, T) for n, d in seen.items() if wanted is None or n in wanted}
        state = np.concatenate(
            [obs["ee_pos"][:T], _rotation_vectors(obs["ee_ori"][:T]), obs["gripper_states"][:T]], 1
        ).astype(np.float32)
        labels = group.get("apt/segmentation", {})
        demo = Demonstration(
            info=self.info,
            images=images,
            state=state,
            actions=group["actions"][shift : shift + T].astype(np.float64),
            joints=obs["joint_states"][:T] if "joint_states" in obs else None,
            sim_states=group["states"][shift : shift + T] if "states" in group else None,
            segmentation={n: self._upright(d, T) for n, d in labels.items() if wanted is None or n in wanted},
            segments=tuple(group.attrs.get("segments", ())),
        )
        size = next(iter(seen.values())).shape[1:3] if seen else (0, 0)
        return _with_cameras(demo, group, set(seen), size)

    def _upright(self, data: h5py.Dataset, steps: int) -> np.ndarray:
        images = data[:steps]
        return np.ascontiguousarray(images[:, ::-1, ::-1]) if self.rotated else images


def _with_cameras(
    demo: Demonstration, group: h5py.Group, names: set[str], size: tuple[int, int]
) -> Demonstration:
    cameras: Mapping[str, CameraTrack] = {}
    if "apt/cameras" in group:
        cameras = {
            n: CameraTrack(c["K"][:], np.broadcast_to(c["pose"][:], (len(demo), 4, 4)))
            for n, c in group["apt/cameras"].items()
        }
    elif "model_file" in group.attrs and names:
        cameras = cameras_from_mjcf(group.attrs["model_file"], size, demo.achieved)
        cameras = {n: c for n, c in cameras.items() if n in names}
    return replace(demo, cameras=cameras)


def _rotation_vectors(orientation: np.ndarray) -> np.ndarray:
    """Orientations as found: rotation vectors (T, 3), or quaternions x y z w (T, 4)."""
    if orientation.shape[1] == 4:
        return Rotation.from_quat(orientation).as_rotvec()
    return orientation


def index_hdf5(path: Path) -> list[Hdf5Entry]:
    """The demonstrations of a file, in order. Raises UserError for a missing, truncated or foreign file."""
    with _open(path) as file:
        data = file.get("data")
        if not isinstance(data, h5py.Group):
            raise UserError(f"{path} holds no demonstrations: it has no group 'data' ({_names(file)}).")
        names = sorted((n for n in data if re.fullmatch(r"demo_\d+", n)), key=lambda n: int(n[5:]))
        if not names:
            raise UserError(f"{path} holds no demonstrations: 'data' has no 'demo_0' ({_names(data)}).")
        entries = []
        late = _observed_late(data, names)
        rotated = int(data.attrs.get("image_rotation", 180)) == 180
        for name in names:
            group = data[name]
            for needed in ("actions", "obs/ee_pos", "obs/ee_ori", "obs/gripper_states"):
                if needed not in group:
                    raise UserError(
                        f"{path} is not in LIBERO's layout: data/{name} has no '{needed}' ({_names(group)})."
                    )
            entries.append(Hdf5Entry(path, name, _info(path, name, group, late), late, rotated))
    return entries


def _info(path: Path, name: str, group: h5py.Group, late: bool) -> DemoInfo:
    if "apt" in group.attrs:
        return DemoInfo.from_json(group.attrs["apt"])
    return DemoInfo(
        episode=f"{path.stem}/{name}",
        steps=group["actions"].shape[0] - late,
        instruction=_sentence(path),
    )


def _sentence(path: Path) -> str:
    """The sentence in LIBERO's file name, which is what policies are trained on and what its suites are asked with;
    `problem_info` often has another wording."""
    stem = re.sub(r"^[A-Z_]*SCENE\d+_", "", path.stem.removesuffix("_demo"))
    return stem.replace("_", " ")


def _observed_late(data: h5py.Group, names: list[str]) -> bool:
    """Whether row t of `obs` was taken after action t; see the module's text."""
    if "observation_time" in data.attrs:
        return data.attrs["observation_time"] != "before_action"
    group = data[names[0]]
    if "states" not in group or "obs/joint_states" not in group:
        return False
    joints = group["obs/joint_states"][:]
    before = group["states"][:, 1 : 1 + joints.shape[1]]  # after the time, LIBERO's qpos begins with the arm
    if len(joints) < 2 or before.shape != joints.shape:
        return False
    return bool(np.abs(joints[:-1] - before[1:]).mean() < np.abs(joints - before).mean())


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """The file for reading, with errors that people can mend."""
    if not path.is_file():
        raise UserError(f"No file {path}.")
    try:
        file = h5py.File(path)
    except OSError as error:
        raise UserError(
            f"{path} is not a whole HDF5 file ({_first(error)}). If it was downloaded or copied, do that again."
        ) from None
    with file:
        try:
            yield file
        except (OSError, KeyError) as error:
            raise UserError(f"{path} is damaged: {_first(error)}.") from error


def _first(error: BaseException) -> str:
    return str(error.args[0] if error.args else error).splitlines()[0].rstrip(".")


def _names(group: h5py.Group) -> str:
    return "it has " + (", ".join(sorted(group)[:8]) or "nothing")
