"""Observations for pretraining the mini VLM: images, and which objects are visible where, under which noun phrases.

A `SceneSource` renders the scenes. There is one for the tabletop (`tabletop_scenes`) and one for LIBERO
(`libero_scenes`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from apt_bench.core.files import parse_json, read_text, write_whole
from apt_bench.core.text import say as say_on_stderr
from apt_bench.envs.base import AGENTVIEW, WRIST
from apt_bench.models.mini_vlm import MiniVLMConfig
from apt_bench.training.cache import digest, entry, require_space
from apt_bench.training.config import OBSERVATIONS_PER_SCENE
from apt_bench.training.progress import Say, Tick

MOST = 12
"""Largest number of objects in one observation."""


VISIBLE = 0.0015
"""Share of the image that an object must cover to count as visible."""


CAMERAS = (AGENTVIEW, WRIST)
"""Cameras of one observation, in the order in which policies receive them."""


Place = tuple[float, float]
"""A centre in an image, as fractions of its width and height."""


@dataclass(frozen=True)
class VisibleObject:
    """An object of an observation.

    Attributes:
        kind: What it is: a key of `SceneSource.kinds`.
        phrases: Noun phrases that mean this object and no other one of the observation.
        places: Its centre in each image of the observation, None where it is not visible.
    """

    kind: str
    phrases: tuple[str, ...]
    places: tuple[Place | None, ...]


@dataclass(frozen=True)
class RenderedObject:
    """An object of a rendered observation: its kind, its noun phrases, and its bool mask (H, W) in each image."""

    kind: str
    phrases: tuple[str, ...]
    masks: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Rendered:
    """One rendered observation: uint8 (H, W, 3) of each camera, and its objects in any order."""

    images: tuple[np.ndarray, ...]
    objects: tuple[RenderedObject, ...]


class SceneSource(Protocol):
    """Where pretraining scenes come from, and the language about them.

    Attributes:
        kinds: Kind of object -> the noun phrase that names it.
        robot_sentence: The form of the robot's instruction, with one {} for a noun phrase. It is only used to measure
            grounding, never in training.
        longest_noise: Largest number of meaningless words on each side of a noun phrase.
    """

    kinds: Mapping[str, str]
    robot_sentence: str
    longest_noise: int

    def identity(self) -> list[Any]:
        """What decides the images, ready for JSON; part of the cache entry's name."""
        ...

    def texts(self) -> Sequence[str]:
        """Every noun phrase that `render` gives, as texts whose words become the vocabulary."""
        ...

    def absent(self, shown: Sequence[str], rng: np.random.Generator) -> str:
        """A noun phrase for something that is not among these kinds, and looks like none of them."""
        ...

    def group(self, kind: str) -> str:
        """The group in which the grounding of this kind is reported."""
        ...

    def render(self, scenes: range) -> Iterator[Rendered]:
        """OBSERVATIONS_PER_SCENE observations of each scene of these numbers."""
        ...


@dataclass(frozen=True)
class SceneImages:
    """n observations of scenes.

    Attributes:
        images: uint8 (n, views, H, W, 3).
        cover: (n, MOST, views, rows, columns), share of each visual token that an object fills.
        objects: Objects of each observation, in the order of `cover`.
    """

    images: np.ndarray
    cover: np.ndarray
    objects: tuple[tuple[VisibleObject, ...], ...]


IMAGES, COVER, OBJECTS = "images.u8", "cover.f16", "objects.json"


def open_scene_images(
    source: SceneSource,
    config: MiniVLMConfig,
    scenes: int,
    cache: Path,
    tick: Tick | None = None,
    first: int = 0,
    say: Say = say_on_stderr,
) -> SceneImages:
    """Observations of pretraining scenes, from the cache or rendered now.

    Args:
        source: Renders the scenes.
        config: Sizes of the mini VLM: image size and token stride.
        scenes: Number of scenes; each gives OBSERVATIONS_PER_SCENE observations.
        cache: Folder of the cache.
        tick: Called with the number of rendered scenes.
        first: Number of the first scene.
        say: Receives messages.
    """
    h, w = config.image_size
    rows, cols, views, count = (
        h // config.stride,
        w // config.stride,
        len(CAMERAS),
        OBSERVATIONS_PER_SCENE * scenes,
    )
    name = digest(*source.identity(), scenes, OBSERVATIONS_PER_SCENE, MOST, h, w, config.stride, first)
    shape, cover = (count, views, h, w, 3), (count, MOST, views, rows, cols)

    def make(part: Path) -> None:
        require_space(part, prod(shape) + 2 * prod(cover))
        images = np.memmap(part / IMAGES, np.uint8, "w+", shape=shape)
        masks = np.memmap(part / COVER, np.float16, "w+", shape=cover)
        objects = []
        for n, rendered in enumerate(source.render(range(first, first + scenes))):
            objects.append(store(rendered, images[n], masks[n]))
            if tick and (n + 1) % OBSERVATIONS_PER_SCENE == 0:
                tick((n + 1) // OBSERVATIONS_PER_SCENE, scenes)
        images.flush()
        masks.flush()
        write_whole(part / OBJECTS, json.dumps(objects).encode())

    def read(folder: Path) -> SceneImages:
        for file, size in ((IMAGES, prod(shape)), (COVER, 2 * prod(cover))):
            if (folder / file).stat().st_size != size:
                raise ValueError(f"{file} is not {size} bytes long")
        images = np.memmap(folder / IMAGES, np.uint8, "r", shape=shape)
        masks = np.memmap(folder / COVER, np.float16, "r", shape=cover)
        return SceneImages(
            images, masks, _objects(parse_json(read_text(folder / OBJECTS)), count, source.kinds)
        )

    return entry(cache / "pictures" / name, make, read, say)


def store(rendered: Rendered, images: np.ndarray, cover: np.ndarray) -> list[Any]:
    """Write one observation into its part of the arrays.

    Args:
        rendered: The observation.
        images: (views, H, W, 3), written.
        cover: (MOST, views, rows, columns), written.

    Returns:
        Its visible objects for JSON: kind, phrases, and the centre in each image or None. At most MOST.
    """
    (height, width), (rows, columns) = images.shape[1:3], cover.shape[2:]
    for view, image in enumerate(rendered.images):
        images[view] = _scaled(image, (width, height))  # averaged, as policies receive them
    found: list[Any] = []
    for one in rendered.objects:
        places: list[list[float] | None] = [
            [float(c) for c in ((np.argwhere(m) + 0.5).mean(0) / m.shape)[::-1]]
            if m.mean() >= VISIBLE
            else None
            for m in one.masks
        ]
        if len(found) == MOST or not any(places):
            continue
        for view, mask in enumerate(one.masks):
            if places[view]:
                cover[len(found), view] = _scaled(mask.astype(np.float32), (columns, rows))
        found.append([one.kind, list(one.phrases), places])
    return found


def _objects(raw: Any, count: int, kinds: Mapping[str, str]) -> tuple[tuple[VisibleObject, ...], ...]:
    """Check the stored objects of `count` observations. Raises ValueError for anything else."""
    if not isinstance(raw, list) or len(raw) != count:
        raise ValueError(f"{OBJECTS} is not a list of {count} observations")
    observations = []
    for objects in raw:
        if len(objects) > MOST:
            raise ValueError(f"{OBJECTS} has an observation of {len(objects)} objects")
        found = []
        for kind, phrases, places in objects:
            if kind not in kinds:
                raise ValueError(f"{OBJECTS} names {kind!r}, which is no kind of object here")
            if len(places) != len(CAMERAS) or not all(
                p is None or (len(p) == 2 and all(0 <= float(c) <= 1 for c in p)) for p in places
            ):
                raise ValueError(f"{OBJECTS} has centres {places}")
            if not phrases or not all(isinstance(p, str) for p in phrases):
                raise ValueError(f"{OBJECTS} has an object without noun phrases")
            centres = tuple(None if p is None else (float(p[0]), float(p[1])) for p in places)
            found.append(VisibleObject(kind, tuple(phrases), centres))
        observations.append(tuple(found))
    return tuple(observations)


def _scaled(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[1::-1] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
