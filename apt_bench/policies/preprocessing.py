"""Resizing of images for policies."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image

from apt_bench.core.errors import UserError

BAND = 32
"""Rows that are cropped at once. Their intermediate values fit into the processor's cache, which saves most of the
time."""


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Reduce a square image by averaging square blocks of pixels.

    Args:
        image: uint8 (H, H, 3).
        size: Height and width of the result; a divisor of H.

    Returns:
        uint8 (size, size, 3), means rounded to the nearest integer.

    Raises:
        UserError: `size` does not divide H, or the image is not square.
    """
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


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3) -> (height, width, 3), with PIL's bilinear filter. An image of this size is returned as it is."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_with_pad(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (size, size, 3): PIL's bilinear filter at an unchanged aspect ratio, centred on black. As
    openpi-client 0.1.2, `image_tools.resize_with_pad`."""
    height, width = image.shape[:2]
    ratio = max(height / size, width / size)
    inner = resize(image, (int(height / ratio), int(width / ratio)))
    if inner.shape[:2] == (size, size):
        return inner
    padded = np.zeros((size, size, 3), np.uint8)
    top, left = (max(0, int((size - n) / 2)) for n in inner.shape[:2])
    padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return padded


def lanczos(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (size, size, 3): Lanczos with three lobes and antialiasing, as in OpenVLA's evaluation. An
    image of this size is returned as it is."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    """The image encoded as JPEG and decoded: OpenVLA's data were JPEG files. Quality 95 with 4:2:0 chroma, the defaults
    of TensorFlow's `encode_jpeg`."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=95, subsampling="4:2:0")
    return np.asarray(Image.open(file).convert("RGB"))


def centre_crop(image: np.ndarray, area: float) -> np.ndarray:
    """The centre of an image that has this share of its area, resized bilinearly to the whole image's size, uint8
    (H, W, 3). As TensorFlow's `crop_and_resize`, which OpenVLA's evaluation uses: the outer pixels' centres are the
    crop's corners."""
    height, width = image.shape[:2]
    top, bottom, wy = _between(height, area)
    left, right, wx = _between(width, area)
    wx = np.repeat(wx, 3)
    found = np.empty((height, 3 * width), np.uint8)
    for start in range(0, height, BAND):
        band = slice(start, start + BAND)
        first, y = top[start], wy[band, None]
        pixels = image[first : bottom[band][-1] + 1].astype(np.float32) / 255
        across = pixels.take(left, 1).reshape(len(pixels), -1) * (1 - wx)
        across += pixels.take(right, 1).reshape(len(pixels), -1) * wx
        values = across[top[band] - first] * (1 - y) + across[bottom[band] - first] * y
        found[band] = np.minimum(np.clip(values, 0, 1) * 255.5, 255)
    return found.reshape(image.shape)


@lru_cache(maxsize=16)
def _between(n: int, area: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of n pixels in a row, the two neighbours that each pixel of the crop lies between, and the weight of the
    second."""
    side = area**0.5
    at = (1 - side) / 2 * (n - 1) + np.arange(n) * (side * (n - 1) / max(1, n - 1))
    low = np.floor(at).astype(int)
    return low, np.minimum(low + 1, n - 1), (at - low).astype(np.float32)


def prepared(image: np.ndarray, method: str, size: tuple[int, int] | None) -> np.ndarray:
    """A rendered image as a policy gets it.

    Args:
        image: uint8 (H, W, 3).
        method: `Interface.resize`. "none": the image as it is. "bilinear": PIL's bilinear filter. "bilinear_pad": the
            same at an unchanged aspect ratio, centred on black. "jpeg_lanczos": JPEG round trip, then Lanczos.
            "jpeg_lanczos_crop": the same, then a crop to the centre 90 % of the area, resized to the same size.
        size: Height and width of the result. All methods but "bilinear" want a square; "none" ignores it.
    """
    if method == "none" or size is None:
        return image
    if method == "bilinear":
        return resize(image, size)
    if method == "bilinear_pad":
        return resize_with_pad(image, size[0])
    image = lanczos(jpeg_round_trip(image), size[0])
    return centre_crop(image, 0.9) if method == "jpeg_lanczos_crop" else image
