"""Reading of LIBERO's HDF5 layout, from our files and those of others; `hdf5_writer.py` describes it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.core.errors import UserError
from apt_bench.core.text import plain
from apt_bench.demos.demonstration import CameraTrack, DemoInfo, Demonstration
from apt_bench.demos.hdf5_safe_file import Node, open_hdf5
from apt_bench.demos.limits import MAX_WIDTH
from apt_bench.demos.mjcf_cameras import cameras_from_mjcf
from apt_bench.demos.value_checks import as_float32, check_camera, check_images, check_steps, check_total
from apt_bench.envs.base import AGENTVIEW, WRIST

RGB = {AGENTVIEW: "agentview_rgb", WRIST: "eye_in_hand_rgb"}
"""Camera -> name of its images in LIBERO's files; other cameras have `NAME_rgb`."""

FORMAT = "apt-bench/1"
BEFORE, AFTER = "before_action", "after_action"
LABELS = "apt/segmentation"
NEEDED = ("actions", "obs/ee_pos", "obs/ee_ori", "obs/gripper_states")


@dataclass(frozen=True)
class Hdf5Entry:
    """One demonstration in a file, without its arrays."""

    path: Path
    name: str  # demo_i
    info: DemoInfo
    late: bool  # row t was observed after action t
    rotated: bool  # images are stored upside down

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that `load` reads."""
        return (self.path,)

    def named(self, episode: str) -> Hdf5Entry:
        """The same demonstration under another name."""
        return replace(self, info=replace(self.info, episode=episode))

    def load(self, cameras: Iterable[str] | None = None) -> Demonstration:
        """Read it with the images of `cameras` (None = all, () = none). Raises UserError if it cannot be read."""
        wanted = None if cameras is None else set(cameras)
        with open_hdf5(self.path) as file:
            group = file.group(f"data/{self.name}")
            rows = _check(group)
            if rows - self.late != self.info.steps:
                raise UserError(f"{group.where()} was changed by another process. Start again.")
            return self._read(group, rows, wanted)

    def _read(self, group: Node, rows: int, wanted: set[str] | None) -> Demonstration:
        T, shift = self.info.steps, int(self.late)
        seen = _images(group)
        position, gripper = group.read("obs/ee_pos", (rows, 3)), group.read("obs/gripper_states", (rows, 2))
        turn = _rotation_vectors(group, rows)
        state = as_float32(np.concatenate([position, turn, gripper], 1)[:T], group.where("obs"))

        def images(place: str, names: dict[str, str], shape: tuple[int | None, ...]) -> dict[str, np.ndarray]:
            return {
                camera: self._upright(group.read(f"{place}/{key}", shape, "u1"))
                for camera, key in names.items()
                if wanted is None or camera in wanted
            }

        demo = Demonstration(
            info=self.info,
            images=images("obs", seen, (rows, None, None, 3)),
            state=state,
            actions=group.read("actions", (rows, 7))[shift:].astype(np.float64),
            joints=_optional(group, "obs/joint_states", rows, slice(0, T)),
            sim_states=_optional(group, "states", rows, slice(shift, shift + T)),
            segmentation=images(LABELS, _labels(group), (rows, None, None)),
            segments=_segments(group),
        )
        return replace(demo, cameras=_cameras(group, demo, seen))

    def _upright(self, images: np.ndarray) -> np.ndarray:
        images = images[: self.info.steps]
        return np.ascontiguousarray(images[:, ::-1, ::-1]) if self.rotated else images


def _optional(group: Node, key: str, rows: int, part: slice) -> np.ndarray | None:
    return group.read(key, (rows, None))[part] if group.has(key) else None


def _images(group: Node) -> dict[str, str]:
    """Camera -> name of its images under `obs`."""
    names = {v: k for k, v in RGB.items()}
    found: dict[str, str] = {}
    for key in group.group("obs").names():
        if key.endswith("_rgb"):
            camera = names.get(key, key.removesuffix("_rgb"))
            if camera in found:
                raise UserError(
                    f"{group.where('obs')} has '{found[camera]}' and '{key}', both of camera '{camera}'."
                )
            found[camera] = key
    return found


def _labels(group: Node) -> dict[str, str]:
    return {n: n for n in group.group(LABELS).names()} if group.has(LABELS) else {}


def _segments(group: Node) -> tuple[str, ...]:
    names = group.attribute("segments")
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UserError(f"{group.where()}: attribute 'segments' must be a list of names.")
    return tuple(names)


def _cameras(group: Node, demo: Demonstration, seen: dict[str, str]) -> dict[str, CameraTrack]:
    steps = len(demo)
    if group.has("apt/cameras"):
        found = {}
        for name in group.group("apt/cameras").names():
            place = group.group(f"apt/cameras/{name}")
            fixed = len(place.shape("pose")) == 2
            K, pose = place.read("K", (3, 3)), place.read("pose", (4, 4) if fixed else (steps, 4, 4))
            check_camera(K, pose, place.where())
            found[name] = CameraTrack(K, np.broadcast_to(pose, (steps, 4, 4)))
        return found
    if seen and (xml := group.text("model_file")):
        _, height, width, _ = group.shape(f"obs/{next(iter(seen.values()))}")
        where = f"{group.where()}: attribute 'model_file'"
        cameras = cameras_from_mjcf(xml, (height, width), demo.achieved, where)
        return {n: c for n, c in cameras.items() if n in seen}
    return {}


def _rotation_vectors(group: Node, rows: int) -> np.ndarray:
    """Orientations as rotation vectors (T, 3), from rotation vectors or quaternions x y z w (T, 4)."""
    key = "obs/ee_ori"
    width = group.shape(key)[-1]
    orientation = group.read(key, (rows, width))
    if width == 3:
        return orientation
    lengths = np.linalg.norm(orientation.astype(float), axis=1)
    if not (np.isfinite(lengths) & (lengths > 1e-6)).all():
        raise UserError(f"{group.where(key)} holds quaternions of length 0.")
    return Rotation.from_quat(orientation).as_rotvec()


def _check(group: Node) -> int:
    """Check all arrays of a demonstration and return its number of rows. Raises UserError for the first bad array."""
    for key in NEEDED:
        if not group.has(key):
            raise UserError(
                f"{group.where()} is not in LIBERO's layout: it has no '{key}' ({group.listed()})."
            )
    rows = len(group.check("actions", (None, 7)))
    check_steps(rows, group.where("actions"))
    width = group.shape("obs/ee_ori")[-1:]
    arrays: list[tuple[str, tuple[int | None, ...]]] = [
        ("obs/ee_pos", (rows, 3)),
        ("obs/ee_ori", (rows, 4 if width == (4,) else 3)),
        ("obs/gripper_states", (rows, 2)),
    ]
    arrays += [(key, (rows, None)) for key in ("obs/joint_states", "states") if group.has(key)]
    total = 0
    for key, shape in arrays:
        data = group.check(key, shape)
        if not 1 <= data.shape[1] <= MAX_WIDTH:
            raise UserError(
                f"{group.where(key)} has rows of {data.shape[1]:,} numbers; they must have 1 to {MAX_WIDTH}."
            )
        total += data.size * data.dtype.itemsize
    for key in _images(group).values():
        total += check_images(
            group.check(f"obs/{key}", (rows, None, None, 3), "u1").shape, group.where(f"obs/{key}")
        )
    for key in _labels(group):
        place = f"{LABELS}/{key}"
        total += check_images(group.check(place, (rows, None, None), "u1").shape, group.where(place))
    check_total(total, group.where())
    count = group.attribute("num_samples")
    if count is not None and (isinstance(count, bool) or count != rows):
        raise UserError(
            f"{group.where()}: attribute 'num_samples' is {count!r:.80}, but there are {rows} actions."
        )
    return rows


def index_hdf5(path: Path) -> list[Hdf5Entry]:
    """The demonstrations of a file, in order.

    Raises:
        UserError: The file is missing, truncated, or of another layout.
    """
    with open_hdf5(path) as file:
        if not file.has("data"):
            raise UserError(f"{path} holds no demonstrations: it has no group 'data' ({file.listed()}).")
        data = file.group("data")
        names = [n for n in data.names() if re.fullmatch(r"demo_[0-9]{1,9}", n)]
        if not names:
            raise UserError(f"{path} holds no demonstrations: 'data' has no 'demo_0' ({data.listed()}).")
        names.sort(key=lambda n: int(n[5:]))
        known = data.attribute("format")
        if known not in (None, FORMAT):
            raise UserError(f"{path} has the format {known!r:.80}; supported formats: {FORMAT} and LIBERO's.")
        rotation = data.attribute("image_rotation")
        if rotation not in (None, 0, 180):
            raise UserError(
                f"{data.where()}: attribute 'image_rotation' is {rotation!r:.80}; it must be 0 or 180."
            )
        rows = {name: _check(data.group(name)) for name in names}
        late = _observed_late(data, names[0], rows[names[0]])
        return [
            Hdf5Entry(path, name, _info(path, name, data.group(name), rows[name], late), late, rotation != 0)
            for name in names
        ]


def _info(path: Path, name: str, group: Node, rows: int, late: bool) -> DemoInfo:
    check_steps(rows - late, group.where("actions"))
    if (text := group.text("apt")) is not None:
        where = f"{group.where()}: attribute 'apt'"
        info = DemoInfo.from_json(text, where)
        if info.steps != rows - late:
            raise UserError(f"{where} declares {info.steps} steps, but there are {rows - late} actions.")
        return info
    return DemoInfo(
        episode=f"{plain(path.stem, keep='')}/{name}",
        steps=rows - late,
        instruction=_sentence(path),
    ).checked(str(path))


def _sentence(path: Path) -> str:
    """The instruction in LIBERO's file name, which policies are trained and evaluated with. `problem_info` often has
    another wording."""
    stem = re.sub(r"^[A-Z_]*SCENE\d+_", "", path.stem.removesuffix("_demo"))
    return plain(stem.replace("_", " "), keep="")


def _observed_late(data: Node, name: str, rows: int) -> bool:
    """Whether row t of `obs` was observed after action t; see the module `hdf5_writer`."""
    said = data.attribute("observation_time")
    if said not in (None, BEFORE, AFTER):
        raise UserError(
            f"{data.where()}: attribute 'observation_time' is {said!r:.80}; it must be {BEFORE} or {AFTER}."
        )
    group = data.group(name)
    if said is not None:
        return bool(said == AFTER)
    if not group.has("states") or not group.has("obs/joint_states"):
        return False
    joints = group.read("obs/joint_states", (rows, None))
    before = group.read("states", (rows, None))[
        :, 1 : 1 + joints.shape[1]
    ]  # after the time, qpos begins with the arm
    if len(joints) < 2 or before.shape != joints.shape:
        return False
    return bool(np.abs(joints[:-1] - before[1:]).mean() < np.abs(joints - before).mean())
