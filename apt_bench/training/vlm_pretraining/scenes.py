"""Rendered scenes of the tabletop for pretraining: images, and which objects are visible where.

Scenes are drawn as the suites draw theirs, with seen and unseen objects alike (a web-scale VLM has seen both), from a
seed that no suite uses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apt_bench.core.files import parse_json, read_text, write_whole
from apt_bench.core.text import say as say_on_stderr
from apt_bench.envs.base import AGENTVIEW, WRIST
from apt_bench.envs.mujoco_helpers import IMAGE_SIZE
from apt_bench.envs.mujoco_no_gl import mujoco
from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.envs.tabletop.catalog import CONTAINERS, ITEMS
from apt_bench.envs.tabletop.robots import PANDA
from apt_bench.envs.tabletop.scene_model import camera_axes
from apt_bench.envs.tabletop.scene_spec import AZIMUTH, DISTANCE, ELEVATION, View
from apt_bench.models.mini_vlm import MiniVLMConfig
from apt_bench.suites import EpisodeKey, EpisodeSpec
from apt_bench.training.cache import digest, entry, require_space
from apt_bench.training.config import OBSERVATIONS_PER_SCENE
from apt_bench.training.progress import Say, Tick

SEED = 1_000_003
"""Seed of the pretraining scenes."""


SPLITS = ("seen", "unseen")


MOST = 8
"""Largest number of objects in one image, and in one observation."""


VISIBLE = 0.0015
"""Share of the image that an object must cover to count as visible."""


CAMERAS = (AGENTVIEW, WRIST)
"""Cameras of one observation, in the order in which policies receive them."""


REACH = np.array([0.7, 0.6, 0.4, 0.6, 0.3, 0.7, 0.8])
"""Largest distance (rad) of each joint from its home position in a random pose."""


Place = tuple[float, float]
"""A centre in an image, as fractions of its width and height."""


@dataclass(frozen=True)
class VisibleObject:
    """An object of an observation.

    Attributes:
        name: Name in the catalogue.
        places: Its centre in each image of the observation, None where it is not visible.
    """

    name: str
    places: tuple[Place | None, ...]

    @property
    def phrases(self) -> tuple[str, ...]:
        """Noun phrases for it."""
        return ITEMS[self.name].aliases if self.name in ITEMS else (self.name.replace("_", " "),)


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


def open_scene_images(
    config: MiniVLMConfig,
    scenes: int,
    cache: Path,
    tick: Tick | None = None,
    first: int = 0,
    say: Say = say_on_stderr,
) -> SceneImages:
    """Observations of pretraining scenes, from the cache or rendered now.

    Args:
        config: Sizes of the mini VLM: image size and token stride.
        scenes: Number of scenes; each gives OBSERVATIONS_PER_SCENE observations.
        cache: Folder of the cache.
        tick: Called with the number of rendered scenes.
        first: Number of the first scene.
        say: Receives messages.
    """
    h, w = config.image_size
    rows, cols, count = h // config.stride, w // config.stride, OBSERVATIONS_PER_SCENE * len(CAMERAS) * scenes
    what = [
        SEED,
        scenes,
        OBSERVATIONS_PER_SCENE * len(CAMERAS),
        h,
        w,
        config.stride,
        sorted(ITEMS),
        sorted(CONTAINERS),
    ]
    name = digest(*what, *([first] if first else []))
    shape, cover = (count, h, w, 3), (count, MOST, rows, cols)

    def make(part: Path) -> None:
        require_space(part, prod(shape) + 2 * prod(cover))
        images = np.memmap(part / IMAGES, np.uint8, "w+", shape=shape)
        masks = np.memmap(part / COVER, np.float16, "w+", shape=cover)
        objects = _render(images, masks, range(first, first + scenes), tick)
        images.flush()
        masks.flush()
        write_whole(part / OBJECTS, json.dumps(objects).encode())

    def read(folder: Path) -> SceneImages:
        for file, size in ((IMAGES, prod(shape)), (COVER, 2 * prod(cover))):
            if (folder / file).stat().st_size != size:
                raise ValueError(f"{file} is not {size} bytes long")
        images = np.memmap(folder / IMAGES, np.uint8, "r", shape=shape)
        masks = np.memmap(folder / COVER, np.float16, "r", shape=cover)
        return group_views(images, masks, _seen(parse_json(read_text(folder / OBJECTS)), count))

    return entry(cache / "pictures" / name, make, read, say)


IMAGES, COVER, OBJECTS = "images.u8", "cover.f16", "things.json"


def _seen(raw: Any, count: int) -> list[list[tuple[str, float, float]]]:
    """Check the stored objects of `count` images: catalogue names and centres. Raises ValueError for anything else."""
    if not isinstance(raw, list) or len(raw) != count:
        raise ValueError(f"{OBJECTS} is not a list of {count} images")
    for image in raw:
        for name, u, v in image:
            if name not in ITEMS and name not in CONTAINERS:
                raise ValueError(f"{OBJECTS} names {name!r}, which is not in the catalogue")
            if not (0 <= float(u) <= 1 and 0 <= float(v) <= 1):
                raise ValueError(f"{OBJECTS} has a centre at {u}, {v}")
        if len(image) > MOST:
            raise ValueError(f"{OBJECTS} has an image of {len(image)} objects")
    return raw


def group_views(
    images: np.ndarray, masks: np.ndarray, seen: Sequence[Sequence[tuple[str, float, float]]]
) -> SceneImages:
    """Group single images into observations.

    Args:
        images: (n * views, H, W, 3).
        masks: (n * views, MOST, rows, columns).
        seen: Name and centre of each object in each image, in the order of `masks`.
    """
    views = len(CAMERAS)
    n = len(images) // views
    cover = np.zeros((n, MOST, views, *masks.shape[2:]), np.float16)
    objects = []
    for i in range(n):
        places: dict[str, list[Place | None]] = {}
        for view in range(views):
            for slot, (name, u, v) in enumerate(seen[views * i + view]):
                if name in places or len(places) < MOST:
                    places.setdefault(name, [None] * views)[view] = (u, v)
                    cover[i, list(places).index(name), view] = masks[views * i + view, slot]
        objects.append(tuple(VisibleObject(name, tuple(found)) for name, found in places.items()))
    return SceneImages(images.reshape(n, views, *images.shape[1:]), cover, tuple(objects))


def scene(index: int) -> EpisodeSpec:
    """Scene number `index`: the splits of items, containers and surroundings take turns."""
    item, container, around = list(product(SPLITS, SPLITS, SPLITS))[index % 8]
    task = ("to_plate", "to_bowl" if container == "seen" else "to_mug")[index // 8 % 2]
    args = {"layout": "table", "items": item, "containers": container, "surroundings": around}
    key = EpisodeKey("pairs", "pairs", task, index // 16, SEED)
    return EpisodeSpec(key, "apt_bench.envs.tabletop:TabletopEnv", "", "", {}, 1, 1, args, "pairs")


def _render(
    images: np.ndarray, masks: np.ndarray, scenes: range, tick: Tick | None
) -> list[list[tuple[str, float, float]]]:
    env, out = TabletopEnv(), []
    (h, w), (rows, cols) = images.shape[1:3], masks.shape[2:]
    for place, index in enumerate(scenes):
        env.reset(scene(index))
        for k, camera in enumerate(OBSERVATIONS_PER_SCENE * CAMERAS):
            if k == len(CAMERAS):
                _move(env, np.random.default_rng((SEED, index)))
            n = OBSERVATIONS_PER_SCENE * len(CAMERAS) * place + k
            images[n] = _scaled(env.frame(camera, IMAGE_SIZE), (w, h))  # averaged, as policies receive them
            labels, values = env.segmentation(camera, IMAGE_SIZE // 2)
            seen: list[tuple[str, float, float]] = []
            for name, value in values.items():
                mask = labels == value
                kind = name if name in ITEMS or name in CONTAINERS else name.rpartition("_")[0]
                if (
                    mask.mean() < VISIBLE
                    or len(seen) == MOST
                    or (kind not in ITEMS and kind not in CONTAINERS)
                ):
                    continue
                v, u = (np.argwhere(mask) + 0.5).mean(0) / mask.shape
                masks[n, len(seen)] = _scaled(mask.astype(np.float32), (cols, rows))
                seen.append((kind, float(u), float(v)))
            out.append(seen)
        if tick:
            tick(place + 1, len(scenes))
    env.close()
    return out


def _scaled(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[1::-1] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _move(env: TabletopEnv, rng: np.random.Generator) -> None:
    """Move the third-person camera, and the arm to a random pose above the table with the hand pointing down."""
    model, data, robot = env.model, env.data, env.scene.robot
    view = View(*(float(rng.uniform(*bounds)) for bounds in (AZIMUTH, ELEVATION, DISTANCE)))
    right, up = camera_axes(view)
    camera = model.camera(AGENTVIEW)
    camera.pos[:] = view.position
    mujoco.mju_mat2Quat(camera.quat, np.stack([right, up, np.cross(right, up)], 1).flatten())
    home = np.array(PANDA.home)
    for _ in range(400):
        data.qpos[: len(home)] = home + rng.uniform(-1, 1, len(home)) * REACH
        mujoco.mj_kinematics(model, data)
        x, y, z = data.site_xpos[robot.grip_site]
        down = -data.site_xmat[robot.grip_site][8]
        if -0.35 < x < 0.12 and abs(y) < 0.32 and 0.93 < z < 1.25 and down > 0.97:
            break
