"""Procedural textures for tables and floors, as PNG bytes that are the same on every machine."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image

from apt_bench.envs.tabletop.catalog import Rgb

SIZE = 128


@cache
def texture_png(pattern: str, first: Rgb, second: Rgb) -> bytes:
    """Return a 128 x 128 texture in two colours. `pattern`: flat, tiles, stripes, wood or noise."""
    mix = _PATTERNS[pattern](np.random.RandomState(5))[..., None]
    rgb = np.array(first) * (1 - mix) + np.array(second) * mix
    buffer = io.BytesIO()
    Image.fromarray(np.rint(rgb * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _flat(random: np.random.RandomState) -> np.ndarray:
    return np.zeros((SIZE, SIZE))


def _tiles(random: np.random.RandomState) -> np.ndarray:
    row, column = np.indices((SIZE, SIZE)) // (SIZE // 4)
    return ((row + column) % 2).astype(float)


def _stripes(random: np.random.RandomState) -> np.ndarray:
    return (np.indices((SIZE, SIZE))[1] // (SIZE // 8) % 2).astype(float)


def _wood(random: np.random.RandomState) -> np.ndarray:
    """Planks with grain along one axis."""
    mix = np.zeros((SIZE, SIZE))
    plank = SIZE // 4
    for k in range(4):
        grain = (
            _smooth(random.rand(plank, 1), 2, 0) * 0.7
            + _smooth(random.rand(plank, SIZE // 2), 2, 24).repeat(2, 1) * 0.3
        )
        mix[k * plank : (k + 1) * plank] = 0.15 + 0.7 * grain + 0.2 * (random.rand() - 0.5)
        mix[k * plank] = 1.0
    return np.clip(mix, 0, 1)


def _noise(random: np.random.RandomState) -> np.ndarray:
    """Blurred noise, as in stone."""
    clouds = sum(_smooth(random.rand(SIZE, SIZE), r, r) * w for r, w in ((16, 0.6), (5, 0.3), (1, 0.1)))
    clouds = np.asarray(clouds)
    return (clouds - clouds.min()) / np.ptp(clouds)


def _smooth(noise: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Apply a periodic box blur and rescale to [0, 1]."""
    for axis, reach in ((0, rows), (1, columns)):
        noise = np.mean([np.roll(noise, k, axis) for k in range(-reach, reach + 1)], axis=0)
    return (noise - noise.min()) / max(np.ptp(noise), 1e-9)


_PATTERNS = {"flat": _flat, "tiles": _tiles, "stripes": _stripes, "wood": _wood, "noise": _noise}
