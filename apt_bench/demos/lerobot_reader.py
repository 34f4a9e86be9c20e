"""Reading of LeRobotDataset v3, from our folders and those of others; `lerobot_layout.py` describes it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa

from apt_bench.core.config import Natural, Range, build
from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line, plain
from apt_bench.demos.demonstration import CameraTrack, DemoInfo, Demonstration, Steps
from apt_bench.demos.lerobot_layout import (
    ADVICE,
    INFO,
    ImageFeature,
    image_features,
    place,
    read_info,
    width,
    within,
)
from apt_bench.demos.parquet_safe_file import episode_rows, matrix, read_table
from apt_bench.demos.value_checks import as_float32, check_camera, check_total
from apt_bench.demos.video import read_mp4

WHERE = ("chunk_index", "file_index")
Number = Annotated[int, Range(least=0, most=10**6)]
Seconds = Annotated[float, Range(least=0, most=10**8)]


@dataclass(frozen=True)
class LeRobotEntry:
    """One episode of a dataset, without its arrays."""

    root: Path
    row: Mapping[str, Any]  # of the episodes' table
    dataset: Mapping[str, Any]  # info.json
    info: DemoInfo
    table: Path  # the file of the row

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that `load` reads, and the index files."""
        videos = (f for f in image_features(self.dataset, self.root / INFO) if f.video)
        return (self.root / INFO, self.table, self._data(), *map(self._video, videos))

    def named(self, episode: str) -> LeRobotEntry:
        """The same episode under another name."""
        return replace(self, info=replace(self.info, episode=episode))

    def load(self, cameras: Iterable[str] | None = None) -> Demonstration:
        """Read it with the images of `cameras` (None = all, () = none). Raises UserError if it cannot be read."""
        steps, wanted = self.info.steps, None if cameras is None else set(cameras)
        features = image_features(self.dataset, self.root / INFO)
        asked = [f for f in features if wanted is None or f.camera in wanted]
        check_total(sum(steps * f.height * f.width * 3 for f in asked), str(self.root))
        tracks = _tracks(self.dataset)
        numbers = ["observation.state", "action", *(n for pair in tracks.values() for n in pair)]
        numbers += ["joints"] if "joints" in self.dataset["features"] else []
        stored = [f.key for f in asked if not f.video]
        path = self._data()
        table = episode_rows(path, self.row["episode_index"], steps, [*numbers, *stored], ["frame_index"])
        numbered = "frame_index" in table.column_names
        if numbered and not np.array_equal(matrix(table, "frame_index", 1, path)[:, 0], np.arange(steps)):
            raise UserError(
                f"{path}: column 'frame_index' of episode {self.row['episode_index']} is not 0 to {steps - 1} in "
                f"order. {ADVICE}"
            )
        values = {n: matrix(table, n, width(self.dataset, n, self.root / INFO), path) for n in numbers}
        return Demonstration(
            info=self.info,
            images={f.camera: self._images(f, table, path) for f in asked},
            state=as_float32(values["observation.state"], f"{path}: column 'observation.state'"),
            actions=values["action"].astype(np.float64),
            cameras={n: _track(values[K], values[pose], f"{path}: {K}") for n, (K, pose) in tracks.items()},
            joints=values.get("joints"),
        )

    def _images(self, feature: ImageFeature, table: pa.Table, path: Path) -> np.ndarray:
        size = (feature.height, feature.width)
        if not feature.video:
            return _stored_images(table, feature, path)
        between = 0.5 / self.dataset["fps"]  # frames
        start = self.row[f"videos/{feature.key}/from_timestamp"] - between
        return read_mp4(self._video(feature), max(0.0, start), self.info.steps, size)

    def _data(self) -> Path:
        chunk, file = (self.row[f"data/{k}"] for k in WHERE)
        return place(self.root, self.dataset, "data_path", chunk, file)

    def _video(self, feature: ImageFeature) -> Path:
        chunk, file = (self.row[f"videos/{feature.key}/{k}"] for k in WHERE)
        return place(self.root, self.dataset, "video_path", chunk, file, feature.key)


def _stored_images(table: pa.Table, feature: ImageFeature, path: Path) -> np.ndarray:
    from PIL import Image

    images = np.empty((len(table), feature.height, feature.width, 3), np.uint8)
    for i, cell in enumerate(table[feature.key]):
        value = cell.as_py()
        content = value.get("bytes") if isinstance(value, dict) else None
        if not isinstance(content, bytes):
            raise UserError(f"{path}: column '{feature.key}' must hold the bytes of PNG or JPEG images.")
        try:
            image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
            if image.size == (feature.width, feature.height):  # known before the image is decompressed
                images[i] = np.asarray(image.convert("RGB"))
                continue
        except Exception as error:  # Pillow raises many types for damaged images
            raise UserError(
                f"{path}: row {i} of column '{feature.key}' is not a complete image: {one_line(error, 200)}."
            ) from None
        raise UserError(
            f"{path}: row {i} of column '{feature.key}' has {image.width}x{image.height} pixels; info.json declares "
            f"{feature.width}x{feature.height}."
        )
    return images


def _tracks(dataset: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Camera -> features of its K and pose."""
    names = [
        k[len("camera.") : -len(".K")]
        for k in dataset["features"]
        if k.startswith("camera.") and k.endswith(".K")
    ]
    return {n: (f"camera.{n}.K", f"camera.{n}.pose") for n in names}


def _track(K: np.ndarray, pose: np.ndarray, where: str) -> CameraTrack:
    first, poses = K[0].reshape(3, 3).astype(np.float64), pose.reshape(-1, 4, 4).astype(np.float64)
    if np.ptp(K, axis=0).any():
        raise UserError(f"{where} changes within the episode.")
    check_camera(first, poses, where)
    return CameraTrack(first, poses)


def index_lerobot(root: Path) -> list[LeRobotEntry]:
    """The episodes of a dataset, in order.

    Raises:
        UserError: The dataset is missing, damaged, or of another layout.
    """
    info = read_info(root)
    _check_tracks(root, info)
    paths = sorted((root / "meta/episodes").glob("*/*.parquet"))
    paths = [p for p in paths if not p.name.startswith(".")]
    if not paths:
        raise UserError(f"{root} has no meta/episodes. It is incomplete: copy or download it again.")
    videos = [f.key for f in image_features(info, root / INFO) if f.video]
    needed = ["episode_index", "length", "tasks", *(f"data/{k}" for k in WHERE)]
    for key in videos:
        needed += [f"videos/{key}/{k}" for k in (*WHERE, "from_timestamp")]
    found: dict[int, LeRobotEntry] = {}
    for path in paths:
        if not within(root, path):
            raise UserError(f"{path} is a link out of the dataset {root}. Copy its target into the dataset.")
        for number, row in enumerate(read_table(path, needed, ("apt",)).to_pylist()):
            entry = LeRobotEntry(root, row, info, _info(root, row, info, f"{path}: row {number}"), path)
            if row["episode_index"] in found:
                raise UserError(
                    f"{path}: row {number}: episode {row['episode_index']} is listed twice. {ADVICE}"
                )
            found[row["episode_index"]] = entry
    if len(found) < (info.get("total_episodes") or 0):
        raise UserError(
            f"{root}/meta/episodes lists {len(found)} of {info['total_episodes']} episodes (total_episodes in "
            "info.json). It is incomplete: copy or download it again."
        )
    return list(found.values())


def _check_tracks(root: Path, info: Mapping[str, Any]) -> None:
    path = root / INFO
    for K, pose in _tracks(info).values():
        if (width(info, K, path), width(info, pose, path)) != (9, 16):
            raise UserError(f"{path}: features '{K}' and '{pose}' must have 9 and 16 numbers. {ADVICE}")
    width(info, "joints", path)


def _info(root: Path, row: dict[str, Any], dataset: Mapping[str, Any], where: str) -> DemoInfo:
    try:
        for key, value in row.items():
            kind: Any = {"length": Steps, "episode_index": Natural}.get(key, Number)
            if key.endswith("timestamp"):
                kind = Seconds
            if key not in ("tasks", "apt"):
                row[key] = build(kind, value, f"{where}: {key}")
        tasks = row["tasks"]
        if not isinstance(tasks, list) or not tasks or not all(isinstance(s, str) for s in tasks):
            raise UserError(f"{where}: tasks is {tasks!r:.80}; it must be a list of sentences.")
        if row.get("apt") is not None:
            info = DemoInfo.from_json(build(str, row["apt"], f"{where}: apt"), f"{where}: apt")
            if info.steps != row["length"]:
                raise UserError(
                    f"{where}: length is {row['length']}, but column 'apt' has {info.steps} steps."
                )
            return info
        return DemoInfo(
            episode=f"{plain(root.name or root.resolve().name, keep='')}/episode_{row['episode_index']}",
            steps=row["length"],
            instruction=tasks[0],
            control_hz=int(dataset["fps"]),
        ).checked(where)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}. {ADVICE}") from None
