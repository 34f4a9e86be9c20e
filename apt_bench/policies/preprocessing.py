"""Images as a policy takes them."""

from __future__ import annotations

import numpy as np

from apt_bench.core.errors import UserError


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, H, 3) -> (size, size, 3): means over square blocks, rounded. Raises UserError where no whole number of
    pixels goes into one."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    if height != width or height % size:
        raise UserError(
            f"--size {size} does not divide the environment's images of {width}x{height}. Use "
            f"{height}, or a divisor of it."
        )
    k = height // size
    total = np.full((size, size, image.shape[2]), k * k // 2, np.uint16)
    for i, j in np.ndindex(k, k):  # far faster than a sum over two axes of a view
        total += image[i::k, j::k]
    return (total // (k * k)).astype(np.uint8)
