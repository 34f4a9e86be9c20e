"""The images that training looks at, in one memory-mapped file: any frame in microseconds, in any order.

Demonstrations are compressed as a whole; training reads single steps at random. The images are scaled to what
the VLM will get anyway, keeping their aspect. The folder is named by what is in it, so the same data are
prepared once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apt_bench.core.errors import UserError
from apt_bench.demos.format import Demonstration
from apt_bench.envs.base import unmirrored

Tick = Callable[[int, int], None]
"""Called with (done, total) while something long goes on."""


def default_cache() -> Path:
    """`$APT_BENCH_CACHE`, or `apt-bench` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("APT_BENCH_CACHE") or Path(base) / "apt-bench")


def digest(*what: Any) -> str:
    """16 hex digits of the SHA-256 of their JSON."""
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def building(folder: Path, size: int) -> Iterator[Path]:
    """A folder beside `folder` to write `size` bytes into; it takes the name when it is complete.

    Raises UserError where the disk has no room or is full."""
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(part).free
        if size > free:
            raise UserError(
                f"The cache {folder.parent} needs {size / 1e9:.2f} GB and has {free / 1e9:.2f} GB free. Free some, "
                "choose another folder with --cache, or look at fewer steps (data.look_every in the configuration)."
            )
        yield part
        if not folder.exists():  # else another process was faster
            part.rename(folder)
    except OSError as error:
        raise UserError(
            f"The cache {folder.parent} cannot be written: {error}. Choose another with --cache."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@dataclass(frozen=True)
class FrameStore:
    """`images[row, view]`: uint8 (H, W, 3), never mirrored. A view that a demonstration lacks is black there."""

    images: np.ndarray  # uint8 (rows, V, H, W, 3), memory-mapped
    native: tuple[int, int]  # height and width of the images before scaling
    hash: str  # of the images


def open_frames(
    load: Callable[[int], Demonstration],
    steps: Sequence[np.ndarray],
    cameras: Sequence[str],
    fit: tuple[int, int],
    key: str,
    cache: Path,
    tick: Tick | None = None,
) -> FrameStore:
    """The frames `steps[i]` of demonstration `load(i)`, one after the other; from the cache if they are
    there.

    fit: (height, width) in pixels that images are scaled down to. key: says which demonstrations these are.
    Raises UserError where the images of two demonstrations differ in size, or are no images.
    """
    folder = (
        cache / "frames" / digest("unmirrored", key, [s.tolist() for s in steps], list(cameras), list(fit))
    )
    if not (folder / "meta.json").is_file():
        _build(folder, load, steps, cameras, fit, tick)
    try:
        meta = json.loads((folder / "meta.json").read_text())
        images = np.memmap(folder / "images.u8", np.uint8, "r", shape=tuple(meta["shape"]))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The cache {folder} is damaged ({error}). Delete it; it will be made again."
        ) from None
    return FrameStore(images, tuple(meta["native"]), meta["hash"])


def _build(
    folder: Path,
    load: Callable[[int], Demonstration],
    steps: Sequence[np.ndarray],
    cameras: Sequence[str],
    fit: tuple[int, int],
    tick: Tick | None,
) -> None:
    native = _shape(load(0), cameras)
    size = _fitted(native, fit)
    shape = (sum(map(len, steps)), len(cameras), *size, 3)
    with building(folder, int(np.prod(shape, dtype=np.int64))) as part:
        images = np.memmap(part / "images.u8", np.uint8, "w+", shape=shape)
        sha, row = hashlib.sha256(), 0
        for i, chosen in enumerate(steps):
            demo = load(i)
            found = _shape(demo, cameras)
            if found != native:
                raise UserError(
                    f"Images of demonstration {demo.info.episode} are {found[0]}x{found[1]} pixels, those before it "
                    f"{native[0]}x{native[1]}. Train on data of one size, or collect again with --size."
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
        (part / "meta.json").write_text(
            json.dumps({"shape": shape, "native": native, "hash": sha.hexdigest()[:16]})
        )


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
    return round(size[0] * scale), round(size[1] * scale)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX))
