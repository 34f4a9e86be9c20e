"""Image preprocessing against independent implementations: plain loops, PIL by hand, values of openpi-client."""

from __future__ import annotations

import hashlib
import io
import math

import numpy as np
import pytest
from PIL import Image

from apt_bench.core.errors import UserError
from apt_bench.policies.preprocessing import (
    centre_crop,
    jpeg_round_trip,
    lanczos,
    resize,
    resize_with_pad,
    shrink,
)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth waves and noise, uint8; the same on every machine."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(-30, 31, (height, width, 3))
    waves = [120 + 80 * np.sin((x * (c + 1) + y) / 9) for c in range(3)]
    return np.clip(np.stack(waves, -1).round() + noise, 0, 255).astype(np.uint8)


def digest(image: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A triangle filter that is as wide as a source pixel or a target pixel, whichever is larger, in float."""

    def weights(n: int, m: int) -> np.ndarray:
        scale = n / m
        support = max(scale, 1.0)
        table = np.zeros((m, n))
        for i in range(m):
            for j in range(n):
                table[i, j] = max(0.0, 1 - abs((j + 0.5) - (i + 0.5) * scale) / support)
        return table / table.sum(1, keepdims=True)

    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum("ij,jkc,lk->ilc", rows, image.astype(float), columns, optimize=True)


def lanczos_3(image: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow's `resize(..., method="lanczos3", antialias=True)`, in float."""

    def kernel(x: float) -> float:
        if abs(x) >= 3:
            return 0.0
        return 1.0 if x == 0 else 3 * math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x) ** 2

    def weights(n: int) -> np.ndarray:
        scale = n / size
        table = np.array(
            [[kernel((j + 0.5 - (i + 0.5) * scale) / max(scale, 1)) for j in range(n)] for i in range(size)]
        )
        return table / table.sum(1, keepdims=True)

    return np.einsum(
        "ij,jkc,lk->ilc", weights(image.shape[0]), image.astype(float), weights(image.shape[1]), optimize=True
    )


def crop_and_resize(image: np.ndarray, area: float) -> np.ndarray:
    """TensorFlow's `crop_and_resize` with the box of OpenVLA's evaluation, and `convert_image_dtype`, in loops."""
    height, width, _ = image.shape
    side = np.sqrt(area)
    y1 = x1 = (1 - side) / 2
    y2 = x2 = y1 + side
    found = np.zeros_like(image)
    for i in range(height):
        in_y = y1 * (height - 1) + i * ((y2 - y1) * (height - 1) / (height - 1))
        for j in range(width):
            in_x = x1 * (width - 1) + j * ((x2 - x1) * (width - 1) / (width - 1))
            top, left = math.floor(in_y), math.floor(in_x)
            bottom, right = math.ceil(in_y), math.ceil(in_x)
            for c in range(3):
                a, b = image[top, left, c] / 255, image[top, right, c] / 255
                d, e = image[bottom, left, c] / 255, image[bottom, right, c] / 255
                upper, lower = a + (b - a) * (in_x - left), d + (e - d) * (in_x - left)
                value = upper + (lower - upper) * (in_y - top)
                found[i, j, c] = min(255, int(value * 255.5))
    return found


@pytest.mark.parametrize("area", [0.9, 0.5, 1.0])
def test_the_centre_crop_is_tensorflows(area: float) -> None:
    image = picture(37, 29)
    difference = np.abs(centre_crop(image, area).astype(int) - crop_and_resize(image, area))
    assert difference.max() <= 1  # float32 here, float64 there
    assert (difference > 0).mean() < 0.01


def test_the_centre_crop_keeps_a_share_of_the_area_not_of_the_side() -> None:
    ramp = np.repeat(np.linspace(0, 255, 224).round().astype(np.uint8)[None, :, None], 224, 0).repeat(3, 2)
    cropped = centre_crop(ramp, 0.9)
    assert cropped.shape == ramp.shape
    margin = (1 - 0.9**0.5) / 2 * 255
    assert abs(int(cropped[0, 0, 0]) - margin) < 1  # 6.5, where a crop by side would give 12.8
    assert abs(255 - int(cropped[0, -1, 0]) - margin) < 1.5


@pytest.mark.parametrize("size", [(224, 224), (100, 224), (300, 280)])
def test_resize_is_bilinear_with_antialiasing(size: tuple[int, int]) -> None:
    image = picture(256, 256)
    assert np.abs(resize(image, size) - bilinear(image, *size)).max() < 1.01


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = picture(224, 224)
    assert resize(image, (224, 224)) is image
    assert resize_with_pad(image, 224) is image


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [(256, 256, 0, 0), (128, 256, 56, 0), (480, 640, 28, 0), (640, 480, 0, 28)],
)
def test_resize_with_pad_centres_the_image_on_black(height: int, width: int, top: int, left: int) -> None:
    image = np.maximum(picture(height, width), 1)
    padded = resize_with_pad(image, 224)
    inner = np.asarray(
        Image.fromarray(image).resize((224 - 2 * left, 224 - 2 * top), Image.Resampling.BILINEAR)
    )
    by_hand = np.zeros((224, 224, 3), np.uint8)
    by_hand[top : 224 - top, left : 224 - left] = inner
    np.testing.assert_array_equal(padded, by_hand)


def test_lanczos_is_tensorflows_within_one_level() -> None:
    image = picture(256, 256)
    expected = np.clip(lanczos_3(image, 224).round(), 0, 255)
    difference = np.abs(lanczos(image, 224) - expected)
    assert difference.max() <= 1
    assert np.abs(resize(image, (224, 224)) - expected).max() > 5  # the test can tell filters apart


def test_the_jpeg_round_trip() -> None:
    image = picture(256, 256)
    again = jpeg_round_trip(image)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=95, subsampling=2)
    np.testing.assert_array_equal(again, np.asarray(Image.open(io.BytesIO(file.getvalue()))))
    assert (again.dtype, again.shape) == (np.uint8, image.shape)
    difference = np.abs(again.astype(int) - image)
    assert 1 < difference.mean() < 20  # it is lossy
    grey = np.full((16, 16, 3), 128, np.uint8)
    np.testing.assert_array_equal(jpeg_round_trip(grey), grey)


def test_shrink() -> None:
    image = picture(8, 8)
    by_hand = np.zeros((4, 4, 3), np.uint8)
    for i in range(4):
        for j in range(4):
            by_hand[i, j] = (image[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum((0, 1)).astype(int) + 2) // 4
    np.testing.assert_array_equal(shrink(image, 4), by_hand)
    with pytest.raises(UserError, match="does not divide"):
        shrink(image, 3)


@pytest.mark.parametrize(
    ("height", "width", "golden"),
    [
        (256, 256, "5fa0fc6210d5269e"),
        (128, 256, "b27bebd7d07f5de4"),
        (480, 640, "776c0898c984d1de"),
        (333, 217, "e26eafd8d9a6dfcf"),
        (100, 90, "2fa3dda4ecfa5bf0"),
    ],
)
def test_resize_with_pad_equals_openpi_clients(height: int, width: int, golden: str) -> None:
    """Sums of what openpi-client 0.1.2 gives. PIL's filter is in integers, so they are the same everywhere."""
    assert digest(resize_with_pad(picture(height, width), 224)) == golden
