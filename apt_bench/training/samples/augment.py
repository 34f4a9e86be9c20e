"""Image augmentation: other light, blur, and another order of the views.

A version of a frame is a pure function of (frame, version number). It is the same after a resume, in a loader's
process, and in the feature cache, whatever the training seed.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from apt_bench.training.config import AugmentConfig

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


def view_order(config: AugmentConfig, frame: int, version: int, views: int) -> np.ndarray:
    """The order of the views in a version of a frame, (views,)."""
    if not (config.enabled and config.shuffle_views):
        return np.arange(views)
    return _rng(frame, version).permutation(views)


def augment(images: np.ndarray, config: AugmentConfig, frame: int, version: int) -> np.ndarray:
    """One version of a frame.

    Args:
        images: The frame's views, uint8 (V, H, W, 3).
        config: Ranges of the augmentation.
        frame: Number of the frame.
        version: Number of the version.

    Returns:
        The views, each with its own light and blur, in their original order.
    """
    if not config.enabled:
        return images
    rng = _rng(frame, version)
    rng.permutation(len(images))  # `view_order` takes this draw
    return np.stack([_relit(image, config, rng) for image in images])


def _rng(frame: int, version: int) -> np.random.Generator:
    return np.random.default_rng((frame, version))


def _relit(image: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    brightness, contrast, saturation = rng.uniform(1 - config.jitter, 1 + config.jitter, 3)
    gamma = rng.uniform(1 - config.gamma, 1 + config.gamma)
    blur, sigma = rng.random() < config.blur_chance, rng.uniform(*config.blur_sigma)
    x = image.astype(np.float32) * np.float32(brightness / 255)
    x += (1 - np.float32(contrast)) * ((x @ LUMA).mean() - x)
    grey = (x @ LUMA)[..., None]
    x = np.clip(grey + np.float32(saturation) * (x - grey), 0, 1) ** np.float32(gamma)
    if blur:
        x = gaussian_filter(x, (sigma, sigma, 0))
    return (255 * x + 0.5).astype(np.uint8)
