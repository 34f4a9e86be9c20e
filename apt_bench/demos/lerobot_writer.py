"""Writing of LeRobotDataset v3; `lerobot_layout.py` describes it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apt_bench.core.errors import UserError
from apt_bench.core.files import write_json, write_whole
from apt_bench.demos.demonstration import DemoInfo, Demonstration
from apt_bench.demos.lerobot_layout import (
    DATA,
    EPISODES,
    FILES_PER_CHUNK,
    IMAGES,
    INFO,
    VERSION,
    VIDEO,
    read_info,
)
from apt_bench.demos.parquet_safe_file import read_table
from apt_bench.demos.video import CODEC, PIXELS, Mp4Writer

DATA_MB, VIDEO_MB = 100, 200
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

STATE_NAMES = ["x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right"]
ACTION_NAMES = ["x", "y", "z", "rx", "ry", "rz", "gripper"]


class LeRobotWriter:
    """Appends demonstrations to a new or existing dataset.

    They are part of it when `close` has written the index. If the process dies before, the dataset is unchanged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._rows: list[dict[str, Any]] = []
        self._info: dict[str, Any] = {}
        if (root / INFO).is_file():
            self._info = read_info(root)
            self._rows = _own_rows(root / EPISODES)
        self._file = 1 + max((_number(r, "data") for r in self._rows), default=-1)
        self._data: pq.ParquetWriter | None = None
        self._videos: dict[str, Mp4Writer] = {}

    def add(self, demo: Demonstration) -> None:
        """Append a demonstration. Raises UserError if its cameras or sizes differ from the dataset's."""
        features = _features(demo)
        if not self._info:
            self._info = _new_info(features, demo.info)
        if self._info["features"] != json.loads(json.dumps(features)):
            raise UserError(f"{self.root}: '{demo.info.episode}' has other features than the dataset.")
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
            self._path = self.root / DATA.format(**where)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._data = pq.ParquetWriter(self._path, table.schema)
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

    def close(self) -> None:
        """Finish the files and write the index, all flushed to the disk. Without new demonstrations nothing is written.

        Raises:
            OSError: A file cannot be written; the dataset is unchanged then.
        """
        self._finish_files()
        if self._info.get("total_episodes", 0) == len(self._rows):
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
        write_json(self.root / "meta/stats.json", _aggregate(self._rows))
        _write_table(self.root / EPISODES, pa.Table.from_pylist(self._rows))
        write_json(self.root / INFO, self._info)

    def abort(self) -> None:
        """Give up what `close` has not written yet."""
        for video in self._videos.values():
            video.abort()
        if self._data is not None:
            with suppress(OSError, pa.ArrowException):
                self._data.close()
        self._data, self._videos = None, {}

    def _finish_files(self) -> None:
        if self._data is not None:
            self._data.close()
            _flush(self._path)
            for video in self._videos.values():
                video.close()
                _flush(video.path)
            self._data, self._videos, self._file = None, {}, self._file + 1

    def _tasks(self, more: Iterable[str] = ()) -> dict[str, int]:
        """Sentence -> index, in the order of their first use; `more` are about to be used."""
        used = [s for row in self._rows for s in row["tasks"]]
        return {s: i for i, s in enumerate(dict.fromkeys([*used, *more]))}


def _own_rows(path: Path) -> list[dict[str, Any]]:
    """The episodes' table of a dataset that this writer made."""
    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    for row in rows:
        whole = all(
            type(row.get(k)) is int for k in ("dataset_to_index", "data/chunk_index", "data/file_index")
        )
        if not whole or not row.get("apt") or not all(isinstance(s, str) for s in row.get("tasks") or [0]):
            raise UserError(f"{path} was not written by `apt-bench collect`. Give --out another folder.")
    return rows


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
    """Statistics of the dataset from its episodes': exact, except quantiles, which are weighted means as LeRobot's."""
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
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    write_whole(path, content.getvalue().to_pybytes())


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
