"""LeRobotDataset v3.0: parquet for numbers, mp4 for images (huggingface/lerobot, docs/source/lerobot-dataset-v3.mdx).

    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet  videos/observation.images.CAMERA/chunk-000/file-000.mp4

Features: `action` (7), `observation.state` (8), `observation.images.CAMERA`, `next.reward`, `next.done`,
`next.success`, `joints`, and for those who want geometry `camera.CAMERA.K` (9) and `camera.CAMERA.pose` (16, camera
to world). Images are upright. Their compression loses detail; numbers are float32, and actions are executed as
float32 too: they replay exactly. The columns `success` and `apt` (`DemoInfo`) of the episodes' table are ours; other
readers ignore them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apt_bench.core.errors import UserError
from apt_bench.demos.format import CameraTrack, DemoInfo, Demonstration
from apt_bench.demos.video import CODEC, PIXELS, Mp4Writer, read_mp4
from apt_bench.envs.base import AGENTVIEW, WRIST

VERSION = "v3.0"
IMAGES = "observation.images."
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA, VIDEO = f"data/{FILE}.parquet", "videos/{video_key}/" + FILE + ".mp4"
EPISODES = f"meta/episodes/{FILE.format(chunk_index=0, file_index=0)}.parquet"
FILES_PER_CHUNK, DATA_MB, VIDEO_MB = 1000, 100, 200
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

ALIASES = {"image": AGENTVIEW, "image2": WRIST, "wrist_image": WRIST}
"""What LIBERO's cameras are called in data sets of others."""

STATE_NAMES = ["x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right"]
ACTION_NAMES = ["x", "y", "z", "rx", "ry", "rz", "gripper"]


class LeRobotWriter:
    """Appends demonstrations to a new or existing data set. They count once `close` has written the index; a writer
    that dies before leaves the data set as it was."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._rows: list[dict[str, Any]] = []
        self._info: dict[str, Any] = {}
        if (root / "meta/info.json").is_file():
            self._info = _read_info(root)
            self._rows = pq.read_table(root / EPISODES).to_pylist()
        self._new = 0
        self._file = 1 + max((_number(r, "data") for r in self._rows), default=-1)
        self._data: pq.ParquetWriter | None = None
        self._videos: dict[str, Mp4Writer] = {}

    def add(self, demo: Demonstration) -> None:
        """Append one. Raises UserError where its cameras or sizes differ from the data set's."""
        features = _features(demo)
        if not self._info:
            self._info = _new_info(features, demo.info)
        if self._info["features"] != json.loads(json.dumps(features)):
            raise UserError(f"{self.root}: '{demo.info.episode}' has other features than the data set.")
        if any(_megabytes(v.path) >= VIDEO_MB for v in self._videos.values()):
            self._finish_files()
        first = self._rows[-1]["dataset_to_index"] if self._rows else 0
        index = len(self._rows)
        sentences = list(dict.fromkeys(demo.instructions))
        tasks = self._tasks(sentences)
        table = _table(demo, features, first, index, [tasks[s] for s in demo.instructions])
        where = {"chunk_index": self._file // FILES_PER_CHUNK, "file_index": self._file % FILES_PER_CHUNK}
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": sentences,
            "length": len(demo),
            **{f"data/{k}": v for k, v in where.items()},
            "dataset_from_index": first,
            "dataset_to_index": first + len(demo),
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        if self._data is None:
            path = self.root / DATA.format(**where)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data = pq.ParquetWriter(path, table.schema)
        for name, images in demo.images.items():
            key, fps = IMAGES + name, self._info["fps"]
            if key not in self._videos:
                path = self.root / VIDEO.format(video_key=key, **where)
                self._videos[key] = Mp4Writer(path, images.shape[1:3], fps)
            video = self._videos[key]
            row |= {f"videos/{key}/{k}": v for k, v in where.items()}
            row[f"videos/{key}/from_timestamp"] = video.frames / fps
            video.add(images)
            row[f"videos/{key}/to_timestamp"] = video.frames / fps
        self._data.write_table(table)  # one row group per episode
        for feature, values in _statistics(demo, table, features).items():
            row |= {f"stats/{feature}/{k}": v.tolist() for k, v in values.items()}
        row |= {"success": demo.info.success, "apt": demo.info.to_json()}
        self._rows.append(row)
        self._new += 1

    def close(self) -> None:
        """Finish the files, then write the index. Nothing new: nothing is written."""
        self._finish_files()
        if not self._new:
            return
        tasks = self._tasks()
        frames = self._rows[-1]["dataset_to_index"]
        self._info |= {
            "total_episodes": len(self._rows),
            "total_frames": frames,
            "total_tasks": len(tasks),
            "splits": {"train": f"0:{len(self._rows)}"},
        }
        _write_table(self.root / "meta/tasks.parquet", _task_table(tasks))
        _write_json(self.root / "meta/stats.json", _aggregate(self._rows))
        _write_table(self.root / EPISODES, pa.Table.from_pylist(self._rows))
        _write_json(self.root / "meta/info.json", self._info)
        self._new = 0

    def _finish_files(self) -> None:
        if self._data is not None:
            self._data.close()
            for video in self._videos.values():
                video.close()
            self._data, self._videos, self._file = None, {}, self._file + 1

    def _tasks(self, more: Iterable[str] = ()) -> dict[str, int]:
        """Sentence -> index, in the order of their first use; `more` are about to be used."""
        used = [s for row in self._rows for s in row["tasks"]]
        return {s: i for i, s in enumerate(dict.fromkeys([*used, *more]))}


def _number(row: Mapping[str, Any], what: str) -> int:
    return int(row[f"{what}/chunk_index"]) * FILES_PER_CHUNK + int(row[f"{what}/file_index"])


def _megabytes(path: Path) -> float:
    return path.stat().st_size / 2**20 if path.exists() else 0.0


def _features(demo: Demonstration) -> dict[str, Any]:
    def numbers(dtype: str, names: list[str] | None = None, size: int = 1) -> dict[str, Any]:
        return {"dtype": dtype, "shape": [size], "names": names}

    features: dict[str, Any] = {}
    for name, images in demo.images.items():
        _, height, width, channels = images.shape
        info = {"height": height, "width": width, "codec": CODEC, "pix_fmt": PIXELS, "is_depth_map": False}
        info |= {"fps": demo.info.control_hz, "channels": channels}
        features[IMAGES + name] = {
            "dtype": "video",
            "shape": [height, width, channels],
            "names": ["height", "width", "channels"],
            "info": {**{f"video.{k}": v for k, v in info.items()}, "has_audio": False},
        }
    features["observation.state"] = numbers("float32", STATE_NAMES, 8)
    features["action"] = numbers("float32", ACTION_NAMES, 7)
    for name in demo.cameras:
        features[f"camera.{name}.K"] = numbers("float32", None, 9)
        features[f"camera.{name}.pose"] = numbers("float32", None, 16)
    if demo.joints is not None:
        features["joints"] = numbers("float32", None, demo.joints.shape[1])
    features["next.reward"] = numbers("float32")
    features["next.done"] = features["next.success"] = numbers("bool")
    features["timestamp"] = numbers("float32")
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = numbers("int64")
    return features


def _new_info(features: dict[str, Any], info: DemoInfo) -> dict[str, Any]:
    return {
        "codebase_version": VERSION,
        "robot_type": info.scene.get("args", {}).get("robot", "panda"),
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": DATA_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "fps": info.control_hz,
        "splits": {},
        "data_path": DATA,
        "video_path": VIDEO,
        "features": json.loads(json.dumps(features)),
    }


def _table(
    demo: Demonstration, features: Mapping[str, Any], first: int, index: int, tasks: list[int]
) -> pa.Table:
    T = len(demo)
    last = np.arange(T) == T - 1
    columns: dict[str, np.ndarray] = {
        "next.reward": last & demo.info.success,
        "next.done": last,
        "next.success": last & demo.info.success,
        "observation.state": demo.state,
        "action": demo.actions,
        "timestamp": np.arange(T) / demo.info.control_hz,
        "frame_index": np.arange(T),
        "episode_index": np.full(T, index),
        "index": np.arange(first, first + T),
        "task_index": np.array(tasks),
    }
    for name, track in demo.cameras.items():
        columns[f"camera.{name}.K"] = np.tile(track.K.reshape(1, 9), (T, 1))
        columns[f"camera.{name}.pose"] = track.pose.reshape(T, 16)
    if demo.joints is not None:
        columns["joints"] = demo.joints
    arrays: dict[str, pa.Array] = {}
    for key, feature in features.items():
        if feature["dtype"] != "video":
            flat = pa.array(np.ascontiguousarray(columns[key], feature["dtype"]).reshape(-1))
            size = feature["shape"][0]
            arrays[key] = flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)
    return pa.table(arrays)


def _statistics(
    demo: Demonstration, table: pa.Table, features: Mapping[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
    """Per feature min, max, mean, std, count and quantiles; of images per channel in [0, 1], shape (3, 1, 1), from
    about twenty frames and every fourth pixel."""
    found = {}
    for key, feature in features.items():
        if feature["dtype"] == "video":
            frames = demo.images[key.removeprefix(IMAGES)][:: max(1, len(demo) // 20)]
            values = frames[:, ::4, ::4].reshape(-1, 3) / 255.0
            shape, count = (3, 1, 1), len(frames)
        else:
            size = feature["shape"][0]
            column = table[key].combine_chunks()
            flat = (column if size == 1 else column.flatten()).to_numpy(zero_copy_only=False)
            values = flat.reshape(-1, size).astype(float)
            shape, count = (size,), len(demo)  # type: ignore[assignment]
        stats = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        stats |= dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True))
        found[key] = {k: v.reshape(shape) for k, v in stats.items()} | {"count": np.array([count])}
    return found


def _aggregate(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The data set's statistics from its episodes': exact but for quantiles: weighted means, as LeRobot's."""
    merged: dict[str, dict[str, Any]] = {}
    for feature in dict.fromkeys(k.split("/")[1] for k in rows[0] if k.startswith("stats/")):

        def stack(name: str, feature: str = feature) -> np.ndarray:
            return np.stack([np.asarray(r[f"stats/{feature}/{name}"], dtype=float) for r in rows])

        mean, std, counts = stack("mean"), stack("std"), stack("count")
        weight = counts.reshape(-1, *[1] * (mean.ndim - 1)) / counts.sum()
        overall = (weight * mean).sum(0)
        stats = {"min": stack("min").min(0), "max": stack("max").max(0), "mean": overall}
        stats["std"] = np.sqrt((weight * (std**2 + (mean - overall) ** 2)).sum(0))
        stats |= {q: (weight * stack(q)).sum(0) for q in QUANTILES}
        merged[feature] = {k: v.tolist() for k, v in stats.items()} | {"count": [int(counts.sum())]}
    return merged


def _task_table(tasks: Mapping[str, int]) -> pa.Table:
    import pandas as pd

    frame = pd.DataFrame({"task_index": list(tasks.values())}, index=pd.Index(list(tasks), name="task"))
    return pa.Table.from_pandas(frame)


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    pq.write_table(table, part)
    part.replace(path)


def _write_json(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=4, ensure_ascii=False))
    part.replace(path)


def _read_info(root: Path) -> dict[str, Any]:
    path = root / "meta/info.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text())
        version = info["codebase_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}). Copy or download it again."
        ) from None
    if not str(version).startswith("v3."):
        raise UserError(
            f"{root} is a LeRobotDataset {version}; this reads v3.0. LeRobot converts v2.1: "
            "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30."
        )
    return info


@dataclass(frozen=True)
class LeRobotEntry:
    """One episode of a data set, not read yet."""

    root: Path
    row: Mapping[str, Any]  # of the episodes' table
    dataset: Mapping[str, Any]  # info.json
    info: DemoInfo

    def load(self, cameras: Iterable[str] | None = None) -> Demonstration:
        """Read it; `cameras`: only these images (None = all, () = none)."""
        path = self.root / self.dataset["data_path"].format(**_place(self.row, "data"))
        if not path.is_file():
            raise UserError(f"No file {path}. The data set is incomplete: copy or download it again.")
        try:
            table = pq.read_table(path, filters=[("episode_index", "=", self.row["episode_index"])])
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} is damaged: {error}. Copy or download it again.") from None
        if len(table) != self.info.steps:
            raise UserError(
                f"{path} has {len(table)} rows of an episode of {self.info.steps}. Copy it again."
            )
        wanted = None if cameras is None else set(cameras)
        images, tracks = {}, {}
        for key, feature in self.dataset["features"].items():
            name = ALIASES.get(key.removeprefix(IMAGES), key.removeprefix(IMAGES))
            if key.startswith(IMAGES) and (wanted is None or name in wanted):
                images[name] = self._images(key, feature, table)
            if key.startswith("camera.") and key.endswith(".K"):
                name = key[len("camera.") : -len(".K")]
                pose = _column(table, f"camera.{name}.pose").reshape(-1, 4, 4).astype(np.float64)
                tracks[name] = CameraTrack(_column(table, key)[0].reshape(3, 3).astype(np.float64), pose)
        return Demonstration(
            info=self.info,
            images=images,
            state=_column(table, "observation.state").astype(np.float32),
            actions=_column(table, "action").astype(np.float64),
            cameras=tracks,
            joints=_column(table, "joints") if "joints" in table.column_names else None,
        )

    def _images(self, key: str, feature: Mapping[str, Any], table: pa.Table) -> np.ndarray:
        if feature["dtype"] == "image":
            from PIL import Image

            cells = table[key].to_pylist()
            return np.stack([np.asarray(Image.open(io.BytesIO(c["bytes"])).convert("RGB")) for c in cells])
        shape, names = feature["shape"], feature.get("names") or ["height", "width", "channels"]
        height, width = (shape[1], shape[2]) if names[0].startswith("c") else (shape[0], shape[1])
        path = self.root / self.dataset["video_path"].format(
            video_key=key, **_place(self.row, f"videos/{key}")
        )
        start = self.row[f"videos/{key}/from_timestamp"] - 0.5 / self.dataset["fps"]  # between two frames
        return read_mp4(path, max(0.0, start), self.info.steps, (height, width))


def _place(row: Mapping[str, Any], what: str) -> dict[str, int]:
    return {k: int(row[f"{what}/{k}"]) for k in ("chunk_index", "file_index")}


def _column(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def index_lerobot(root: Path) -> list[LeRobotEntry]:
    """The episodes of a data set, in order. Raises UserError for a missing, damaged or foreign one."""
    info = _read_info(root)
    features = info.get("features", {})
    for key, size in (("observation.state", 8), ("action", 7)):
        if list(features.get(key, {}).get("shape", [])) != [size]:
            raise UserError(
                f"{root}: feature '{key}' must have {size} numbers, as LIBERO's; it has "
                f"{features.get(key, {}).get('shape', 'none')}."
            )
    paths = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{root} has no meta/episodes. Copy or download it again.")
    try:
        tables = [pq.read_table(p) for p in paths]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{root}/meta/episodes is damaged: {error}. Copy or download it again.") from None
    rows: list[dict[str, Any]] = []
    for table in tables:
        keep = [n for n in table.column_names if not n.startswith("stats/")]
        rows += table.select(keep).to_pylist()
    return [LeRobotEntry(root, row, info, _info(root, row, info)) for row in rows]


def _info(root: Path, row: Mapping[str, Any], dataset: Mapping[str, Any]) -> DemoInfo:
    if row.get("apt"):
        return DemoInfo.from_json(row["apt"])
    return DemoInfo(
        episode=f"{root.name}/episode_{row['episode_index']}",
        steps=int(row["length"]),
        instruction=row["tasks"][0],
        control_hz=int(dataset["fps"]),
    )
