"""What a policy is shown in training: a frame as recorded, or a version of it in other light and another view
order.

A version is a pure function of (frame, version number), so the same picture comes back after a resume, in a
loader's process, and in the feature cache, whatever the training seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy.ndimage import gaussian_filter

from apt_bench.core.config import Range, check_fields
from apt_bench.core.errors import UserError

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


Part = Annotated[float, Range(least=0, most=1)]
Sigma = Annotated[float, Range(least=0, most=100)]


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges as in the released APT. `copies`: how many versions of each frame there are; 0 = a fresh one for
    every sample, which then cannot be cached as features. `jitter`: half width of brightness, contrast and
    saturation about 1."""

    enabled: bool = True
    copies: Annotated[int, Range(least=0, most=10_000)] = 0
    jitter: Part = 0.25
    gamma: Part = 0.15
    blur_chance: Part = 1 / 7
    blur_sigma: tuple[Sigma, Sigma] = (0.1, 1.0)  # pixels of the delivered image; the release states none
    shuffle_views: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "data.augment")
        if self.blur_sigma[0] > self.blur_sigma[1]:
            raise UserError(f"data.augment: blur_sigma {self.blur_sigma} must be (least, most).")

    def version(self, rng: np.random.Generator, sample: int) -> int:
        """Which version of its frame the `sample`-th sample shows."""
        if not self.enabled:
            return 0
        return int(rng.integers(self.copies)) if self.copies else sample


def view_order(config: AugmentConfig, frame: int, version: int, views: int) -> np.ndarray:
    """The order in which a version lists its views, (views,)."""
    if not (config.enabled and config.shuffle_views):
        return np.arange(views)
    return _rng(frame, version).permutation(views)


def augment(images: np.ndarray, config: AugmentConfig, frame: int, version: int) -> np.ndarray:
    """uint8 (V, H, W, 3) -> the same in the version's light, each view on its own, in the original order."""
    if not config.enabled:
        return images
    rng = _rng(frame, version)
    rng.permutation(len(images))  # the view order's draw
    return np.stack([_relit(image, config, rng) for image in images])


def _rng(frame: int, version: int) -> np.random.Generator:
    return np.random.default_rng((frame, version))


def _relit(image: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    brightness, contrast, saturation = rng.uniform(1 - config.jitter, 1 + config.jitter, 3)
    gamma = rng.uniform(1 - config.gamma, 1 + config.gamma)
    blur, sigma = rng.random() < config.blur_chance, rng.uniform(*config.blur_sigma)
    x = image.astype(np.float32) * np.float32(brightness / 255)
    x += (1 - np.float32(contrast)) * ((x @ LUMA).mean() - x)  # towards the mean brightness, or away from it
    grey = (x @ LUMA)[..., None]
    x = np.clip(grey + np.float32(saturation) * (x - grey), 0, 1) ** np.float32(gamma)
    if blur:
        x = gaussian_filter(x, (sigma, sigma, 0))
    return (255 * x + 0.5).astype(np.uint8)
