"""The training images of a dataset in one memory-mapped file, for fast access to single frames.

Demonstrations are compressed as a whole, while training reads single steps at random. Images are scaled to the size
that the VLM receives, with their aspect ratio. The folder's name is a digest of its content, so that the same data are
prepared once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image

from apt_bench.core.config import Count, build
from apt_bench.core.errors import UserError
from apt_bench.core.files import read_json, write_json
from apt_bench.core.text import say as say_on_stderr
from apt_bench.demos.demonstration import Demonstration
from apt_bench.envs.base import unmirrored
from apt_bench.training.cache import digest, entry, require_space
from apt_bench.training.progress import Say, Tick


@dataclass(frozen=True)
class FrameStore:
    """The frames of a dataset.

    Attributes:
        images: uint8 (rows, V, H, W, 3), memory-mapped, never mirrored. A view that a demonstration lacks is black.
        native: Height and width of the images before scaling.
        hash: Digest of the images.
    """

    images: np.ndarray
    native: tuple[int, int]
    hash: str


def open_frames(
    load: Callable[[int], Demonstration],
    steps: Sequence[np.ndarray],
    cameras: Sequence[str],
    fit: tuple[int, int],
    key: str,
    cache: Path,
    tick: Tick | None = None,
    say: Say = say_on_stderr,
) -> FrameStore:
    """The frames of a dataset, from the cache or prepared now.

    Args:
        load: Reads demonstration number i, with its images.
        steps: Steps of each demonstration; their frames follow one another.
        cameras: Names of the views.
        fit: (height, width) in pixels that images are scaled down to.
        key: Identifies the demonstrations in the cache's key.
        cache: Folder of the cache.
        tick: Called with the number of finished demonstrations.
        say: Receives messages.

    Raises:
        UserError: Two demonstrations have images of different sizes, or their arrays are not images.
    """
    name = digest("unmirrored", key, [s.tolist() for s in steps], list(cameras), list(fit))
    rows = sum(map(len, steps))

    def read(folder: Path) -> FrameStore:
        meta = read_json(folder / "meta.json")
        native, sha = build(tuple[Count, Count], meta["native"], "native"), build(str, meta["hash"], "hash")
        shape = (rows, len(cameras), *_fitted(native, fit), 3)
        if meta["shape"] != list(shape) or (folder / IMAGES).stat().st_size != prod(shape):
            raise ValueError(f"{IMAGES} is not of shape {shape}")
        return FrameStore(np.memmap(folder / IMAGES, np.uint8, "r", shape=shape), native, sha)

    def make(part: Path) -> None:
        _build(part, load, steps, cameras, fit, tick)

    return entry(cache / "frames" / name, make, read, say)


IMAGES = "images.u8"


def _build(
    part: Path,
    load: Callable[[int], Demonstration],
    steps: Sequence[np.ndarray],
    cameras: Sequence[str],
    fit: tuple[int, int],
    tick: Tick | None,
) -> None:
    native = _shape(load(0), cameras)
    size = _fitted(native, fit)
    shape = (sum(map(len, steps)), len(cameras), *size, 3)
    require_space(part, prod(shape))
    images = np.memmap(part / IMAGES, np.uint8, "w+", shape=shape)
    sha, row = hashlib.sha256(), 0
    for i, chosen in enumerate(steps):
        demo = load(i)
        found = _shape(demo, cameras)
        if found != native:
            raise UserError(
                f"Images of demonstration {demo.info.episode} are {found[0]}x{found[1]} pixels, those before it "
                f"{native[0]}x{native[1]}. Use data of one size, or collect again with --size."
            )
        for view, camera in enumerate(cameras):
            if camera in demo.images:
                shown = demo.images[camera]
                if track := demo.cameras.get(camera):
                    shown, _ = unmirrored(shown, track.K)
                for k, t in enumerate(chosen):
                    images[row + k, view] = _resized(np.ascontiguousarray(shown[t]), size)
        sha.update(images[row : row + len(chosen)].tobytes())
        row += len(chosen)
        if tick:
            tick(i + 1, len(steps))
    images.flush()
    write_json(part / "meta.json", {"shape": shape, "native": native, "hash": sha.hexdigest()[:16]})


def _shape(demo: Demonstration, cameras: Sequence[str]) -> tuple[int, int]:
    shapes = {c: demo.images[c].shape[1:] for c in cameras if c in demo.images}
    if not shapes:
        raise UserError(
            f"Demonstration {demo.info.episode} has no images of {', '.join(cameras)}; it has "
            f"{', '.join(demo.images) or 'none'}. Choose cameras with data.cameras in the configuration."
        )
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 3:
        raise UserError(
            f"Images of demonstration {demo.info.episode} are {shapes}; all must be one (height, width, 3)."
        )
    height, width, _ = next(iter(shapes.values()))
    return height, width


def _fitted(size: tuple[int, int], fit: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, fit[0] / size[0], fit[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX))
