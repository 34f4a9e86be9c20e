"""LeRobotDataset v3.0: parquet for numbers, mp4 for images (huggingface/lerobot, docs/source/lerobot-dataset-v3.mdx).

    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet  videos/observation.images.CAMERA/chunk-000/file-000.mp4

Features: `action` (7), `observation.state` (8), `observation.images.CAMERA`, `next.reward`, `next.done`,
`next.success`, `joints`, and the camera geometry: `camera.CAMERA.K` (9) and `camera.CAMERA.pose` (16, camera to world).
Images are upright; video compression is lossy. Numbers are float32. Actions are also executed as float32, so they
replay exactly. The columns `success` and `apt` (`DemoInfo`) of the episodes' table are ours; other readers ignore them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from apt_bench.core.config import Natural, Range, build
from apt_bench.core.errors import UserError
from apt_bench.core.files import read_json
from apt_bench.demos.limits import MAX_HZ, MAX_SIDE, MAX_WIDTH
from apt_bench.envs.base import AGENTVIEW, WRIST

VERSION = "v3.0"
INFO = "meta/info.json"
IMAGES = "observation.images."
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA, VIDEO = f"data/{FILE}.parquet", "videos/{video_key}/" + FILE + ".mp4"
EPISODES = f"meta/episodes/{FILE.format(chunk_index=0, file_index=0)}.parquet"
FILES_PER_CHUNK = 1000

ALIASES = {"image": AGENTVIEW, "image2": WRIST, "wrist_image": WRIST}
"""Names of LIBERO's cameras in datasets of others -> ours."""

NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
PLACEHOLDER = re.compile(r"\{(chunk_index|file_index|video_key)(?::0?([1-9])d)?\}")
ADVICE = "Correct the file, or write the dataset again with the program that made it."


@dataclass(frozen=True)
class ImageFeature:
    """One camera's images in a dataset."""

    key: str  # of the feature
    camera: str
    height: int
    width: int
    video: bool  # False: PNG or JPEG in the rows


def read_info(root: Path) -> dict[str, Any]:
    """Read and check `meta/info.json`. Raises UserError for the first invalid field."""
    path = root / INFO
    info = read_json(path)
    version = info.get("codebase_version")
    if not isinstance(version, str) or not re.fullmatch(r"v?[0-9.]{1,10}", version):
        raise UserError(f"{path}: codebase_version is {version!r:.80}; it must be {VERSION}. {ADVICE}")
    if not version.startswith("v3."):
        raise UserError(
            f"{root} is a LeRobotDataset {version}; v3.0 is supported. lerobot 0.5 and later converts v2.1: "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id OWNER/NAME --root FOLDER "
            "--push-to-hub=false (in lerobot 0.4 the module is lerobot.datasets.v30.convert_dataset_v21_to_v30)."
        )
    try:
        fps = build(Annotated[float, Range(least=1, most=MAX_HZ)], info.get("fps"), f"{path}: fps")
        if fps != int(fps):
            raise UserError(f"{path}: fps is {fps}; it must be a whole number.")
        for name in ("total_episodes", "total_frames", "total_tasks", "chunks_size"):
            if info.get(name) is not None:
                build(Natural, info[name], f"{path}: {name}")
        if not isinstance(info.get("features"), dict):
            raise UserError(f"{path}: features must be an object with one entry for each feature.")
        for key, feature in info["features"].items():
            if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
                raise UserError(f"{path}: feature '{key}' must be an object with a dtype.")
        for key, size in (("observation.state", 8), ("action", 7)):
            if (found := width(info, key, path)) != size:
                raise UserError(
                    f"{path}: feature '{key}' must have {size} numbers, as in LIBERO; it has {found or 'none'}."
                )
        images = image_features(info, path)
        place(root, info, "data_path", 0, 0)
        if any(f.video for f in images):
            place(root, info, "video_path", 0, 0, "x")
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}. {ADVICE}") from None
    return info


def width(info: Mapping[str, Any], key: str, path: Path) -> int:
    """Numbers per row of this feature; 0 if there is no such feature."""
    feature = info["features"].get(key)
    if feature is None:
        return 0
    shape = feature.get("shape")
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int:
        raise UserError(
            f"{path}: feature '{key}' has the shape {shape!r:.80}; it must be [numbers in a row]."
        )
    if not 1 <= shape[0] <= MAX_WIDTH or feature["dtype"] not in NUMBERS:
        raise UserError(
            f"{path}: feature '{key}' is {shape[0]} of {feature['dtype']:.80}; it must be 1 to {MAX_WIDTH} of "
            f"{', '.join(NUMBERS)}."
        )
    return shape[0]


def image_features(info: Mapping[str, Any], path: Path) -> list[ImageFeature]:
    """The cameras of a dataset."""
    found: dict[str, ImageFeature] = {}
    for key, feature in info["features"].items():
        if not key.startswith(IMAGES) or feature["dtype"] not in ("video", "image"):
            continue
        shape, names = feature.get("shape"), feature.get("names")
        sides = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)
        named = isinstance(names, list) and len(names) == 3 and all(isinstance(n, str) for n in names)
        if not sides or not (named or names is None):
            raise UserError(
                f"{path}: feature '{key}' has the shape {shape!r:.80} and names {names!r:.80}; they must be height, "
                "width and channels, in the order of the names."
            )
        first = names[0].startswith("c") if names else shape[0] == 3 and shape[2] != 3
        channels, height, wide = shape if first else (shape[2], shape[0], shape[1])
        if channels != 3 or not all(1 <= n <= MAX_SIDE for n in (height, wide)):
            raise UserError(
                f"{path}: feature '{key}' has images of {wide}x{height} with {channels} channels; sides must be 1 "
                f"to {MAX_SIDE}, with 3 channels."
            )
        name = key.removeprefix(IMAGES)
        camera = ALIASES.get(name, name)
        if camera in found:
            raise UserError(
                f"{path}: features '{found[camera].key}' and '{key}' are both of camera '{camera}'."
            )
        found[camera] = ImageFeature(key, camera, height, wide, feature["dtype"] == "video")
    return list(found.values())


def place(root: Path, info: Mapping[str, Any], field: str, chunk: int, file: int, video: str = "") -> Path:
    """Path of a data or video file.

    Args:
        root: Folder of the dataset.
        info: Content of info.json.
        field: `data_path` or `video_path`. Its value is a template with the specification's placeholders.
        chunk: Number of the chunk.
        file: Number of the file.
        video: Key of the video feature.

    Raises:
        UserError: The template is invalid, or the path leaves the dataset.
    """
    template = info.get(field)
    if not isinstance(template, str) or len(template) > 500:
        raise UserError(f"{root / INFO}: {field} is {template!r:.80}; it must be text such as {DATA}.")
    values: dict[str, int | str] = {"chunk_index": chunk, "file_index": file, "video_key": video}

    def fill(found: re.Match[str]) -> str:
        name, digits = found[1], int(found[2] or 0)
        return str(values[name]).zfill(digits) if name != "video_key" else str(values[name])

    name = PLACEHOLDER.sub(fill, template)
    if re.search(r"[{}]", PLACEHOLDER.sub("", template)):
        raise UserError(
            f"{root / INFO}: {field} is '{template}'; it may hold only {{chunk_index:03d}}, {{file_index:03d}} and "
            "{video_key}."
        )
    path = root / name
    if ".." in Path(name).parts or not within(root, path):
        raise UserError(f"{root / INFO}: {field} leads to '{name}', outside the dataset {root}.")
    return path


def within(root: Path, path: Path) -> bool:
    """Whether a file, with links followed, is inside the dataset."""
    try:
        real = path.resolve()
    except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links
        return False
    return any(real.is_relative_to(home) for home in _homes(root))


def _homes(root: Path) -> list[Path]:
    """Folders that may hold a dataset's files: its own, and, for a snapshot in the Hugging Face hub's cache, the blobs
    that it links to."""
    real = root.resolve()
    return [real, real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [real]
