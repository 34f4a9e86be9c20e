"""Checks of numbers from a file. Every message begins with the place, `where`."""

from __future__ import annotations

from math import prod

import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.demos.limits import MAX_BYTES, MAX_SIDE, MAX_STEPS

RIGID = 1e-2
"""Largest deviation of a rotation matrix from orthonormal; files hold float32."""


def check_steps(steps: int, where: str) -> None:
    """Raises UserError for a demonstration with no steps or too many."""
    if not 1 <= steps <= MAX_STEPS:
        raise UserError(f"{where}: a demonstration has {steps:,} steps; 1 to {MAX_STEPS:,} are read.")


def check_images(shape: tuple[int, ...], where: str) -> int:
    """Bytes of images (T, H, W) or (T, H, W, 3). Raises UserError for empty or too large images."""
    if not all(1 <= n <= MAX_SIDE for n in shape[1:3]):
        raise UserError(f"{where}: images have {shape[2]}x{shape[1]} pixels; sides must be 1 to {MAX_SIDE}.")
    check_total(size := prod(shape), where)
    return size


def check_total(size: int, where: str) -> None:
    """Raises UserError for more bytes than one demonstration may have."""
    if size > MAX_BYTES:
        raise UserError(f"{where}: one demonstration has {size:,} bytes; at most {MAX_BYTES:,} are read.")


def as_float32(values: np.ndarray, where: str) -> np.ndarray:
    """The numbers as float32. Raises UserError if one is too large."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise UserError(f"{where} holds a number that is too large for float32.")
    return narrow


def check_camera(K: np.ndarray, pose: np.ndarray, where: str) -> None:
    """Raises UserError if `K` (3, 3) is not of a pinhole camera or `pose` (..., 4, 4) is not rigid."""
    if min(abs(K[0, 0]), abs(K[1, 1])) < 1e-6 or not np.allclose(K[2], [0, 0, 1]):
        raise UserError(f"{where}: K {np.round(K, 3).tolist()} is not the matrix of a camera.")
    turn = pose[..., :3, :3].astype(float)
    with np.errstate(over="ignore", invalid="ignore"):
        rigid = np.abs(turn @ np.swapaxes(turn, -1, -2) - np.eye(3)).max() < RIGID
    if not rigid or not np.allclose(pose[..., 3, :], [0, 0, 0, 1]):
        raise UserError(f"{where}: pose is not rigid: it must be [3x3 rotation, position; 0 0 0 1].")
