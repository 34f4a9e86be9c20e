"""Pictures of the tabletop and sentences about them, without any action: what the mini VLM is pretrained on.

Scenes are drawn as the suites draw theirs, seen and unseen things alike (a web-scale VLM knows them too),
from a seed that no suite uses. Sentences name, count, relate and point; none has the form of the robot's
instruction.
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
from apt_bench.envs.mj import mujoco
from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.envs.tabletop.camera import SIZE
from apt_bench.envs.tabletop.catalog import CONTAINERS, ITEMS, conflict
from apt_bench.envs.tabletop.robots import PANDA
from apt_bench.envs.tabletop.scene import camera_axes
from apt_bench.envs.tabletop.specs import AZIMUTH, DISTANCE, ELEVATION, View
from apt_bench.models.mini_vlm import BOS_ID, END_ID, MiniTokenizer, MiniVLMConfig
from apt_bench.suites import EpisodeKey, EpisodeSpec
from apt_bench.training.cache import Say, Tick, digest, entry, need
from apt_bench.training.config import LOOKS

SEED = 1_000_003
"""Of pretraining's scenes."""

SPLITS = ("seen", "unseen")
MOST = 8
"""Things in one picture, at most, and in one look."""
VISIBLE = 0.0015
"""Share of the picture that a thing must cover to be spoken of."""
CAMERAS = (AGENTVIEW, WRIST)
"""Pictures of one look, in the order in which policies get them."""
REACH = np.array([0.7, 0.6, 0.4, 0.6, 0.3, 0.7, 0.8])
"""Largest distance (rad) of a random pose's joints from home."""


Place = tuple[float, float]
"""A centre in a picture, as a fraction of its width and height."""


@dataclass(frozen=True)
class Thing:
    """Something visible: its catalogue name and its place in each of a look's pictures, None where it is not seen."""

    name: str
    places: tuple[Place | None, ...]

    @property
    def phrases(self) -> tuple[str, ...]:
        """What it may be called."""
        return ITEMS[self.name].aliases if self.name in ITEMS else (self.name.replace("_", " "),)


@dataclass(frozen=True)
class Pictures:
    """n looks. images: uint8 (n, views, H, W, 3). cover: (n, MOST, views, rows, columns), share of each visual token
    that a thing fills. things: per look, in the order of `cover`."""

    images: np.ndarray
    cover: np.ndarray
    things: tuple[tuple[Thing, ...], ...]


def open_pictures(
    config: MiniVLMConfig,
    scenes: int,
    cache: Path,
    tick: Tick | None = None,
    first: int = 0,
    say: Say = say_on_stderr,
) -> Pictures:
    """LOOKS at each of `scenes` scenes from number `first` on; rendered now if they are not in the cache, or damaged
    there."""
    h, w = config.image_size
    rows, cols, count = h // config.stride, w // config.stride, LOOKS * len(CAMERAS) * scenes
    what = [SEED, scenes, LOOKS * len(CAMERAS), h, w, config.stride, sorted(ITEMS), sorted(CONTAINERS)]
    name = digest(*what, *([first] if first else []))
    shape, cover = (count, h, w, 3), (count, MOST, rows, cols)

    def make(part: Path) -> None:
        need(part, prod(shape) + 2 * prod(cover))
        images = np.memmap(part / IMAGES, np.uint8, "w+", shape=shape)
        masks = np.memmap(part / COVER, np.float16, "w+", shape=cover)
        things = _render(images, masks, range(first, first + scenes), tick)
        images.flush()
        masks.flush()
        write_whole(part / THINGS, json.dumps(things).encode())

    def read(folder: Path) -> Pictures:
        for file, size in ((IMAGES, prod(shape)), (COVER, 2 * prod(cover))):
            if (folder / file).stat().st_size != size:
                raise ValueError(f"{file} is not {size} bytes long")
        images = np.memmap(folder / IMAGES, np.uint8, "r", shape=shape)
        masks = np.memmap(folder / COVER, np.float16, "r", shape=cover)
        return paired(images, masks, _seen(parse_json(read_text(folder / THINGS)), count))

    return entry(cache / "pictures" / name, make, read, say)


IMAGES, COVER, THINGS = "images.u8", "cover.f16", "things.json"


def _seen(raw: Any, count: int) -> list[list[tuple[str, float, float]]]:
    """What is in each of `count` pictures: names of the catalogue and centres. Raises ValueError for anything else."""
    if not isinstance(raw, list) or len(raw) != count:
        raise ValueError(f"{THINGS} is not a list of {count} pictures")
    for picture in raw:
        for name, u, v in picture:
            if name not in ITEMS and name not in CONTAINERS:
                raise ValueError(f"{THINGS} names {name!r}, which is nothing of the catalogue")
            if not (0 <= float(u) <= 1 and 0 <= float(v) <= 1):
                raise ValueError(f"{THINGS} has a centre at {u}, {v}")
        if len(picture) > MOST:
            raise ValueError(f"{THINGS} has a picture of {len(picture)} things")
    return raw


def paired(
    images: np.ndarray, masks: np.ndarray, seen: Sequence[Sequence[tuple[str, float, float]]]
) -> Pictures:
    """Looks from single pictures: images (n * views, H, W, 3), masks (n * views, MOST, rows, columns), and the name
    and centre of what is in each picture, in the order of `masks`."""
    views = len(CAMERAS)
    n = len(images) // views
    cover = np.zeros((n, MOST, views, *masks.shape[2:]), np.float16)
    things = []
    for look in range(n):
        places: dict[str, list[Place | None]] = {}
        for view in range(views):
            for slot, (name, u, v) in enumerate(seen[views * look + view]):
                if name in places or len(places) < MOST:
                    places.setdefault(name, [None] * views)[view] = (u, v)
                    cover[look, list(places).index(name), view] = masks[views * look + view, slot]
        things.append(tuple(Thing(name, tuple(found)) for name, found in places.items()))
    return Pictures(images.reshape(n, views, *images.shape[1:]), cover, tuple(things))


def scene(index: int) -> EpisodeSpec:
    """The index-th scene: items, containers and surroundings of every split in turn."""
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
        for k, camera in enumerate(LOOKS * CAMERAS):
            if k == len(CAMERAS):
                _move(env, np.random.default_rng((SEED, index)))
            n = LOOKS * len(CAMERAS) * place + k
            images[n] = _scaled(env.frame(camera, SIZE), (w, h))  # as policies get them: averages
            labels, values = env.segmentation(camera, SIZE // 2)
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


def _scaled(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape[1::-1] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _move(env: TabletopEnv, rng: np.random.Generator) -> None:
    """Another third-person camera, and the arm somewhere above the table with its hand down."""
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


@dataclass(frozen=True)
class Sentence:
    """ids with begin and end; tokens from `answer` on are to be predicted; nouns: (position of a phrase's
    last token, index of the thing it means)."""

    ids: tuple[int, ...]
    answer: int
    nouns: tuple[tuple[int, int], ...]


TEMPLATES = (
    "where is the ?",
    "there is a , and .",
    "what is left right of in front behind",
    "is there yes no",
    "how many things are there ?",
)
"""The words of the sentences below, things' names and numbers apart."""
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
NUMBERS = ("nothing", "one", "two", "three", "four", "five", "six", "seven", "eight")


def vocabulary() -> tuple[str, ...]:
    """Every word of the sentences below."""
    texts = [
        *TEMPLATES,
        *NUMBERS,
        *(a for i in ITEMS.values() for a in i.aliases),
        *(c.replace("_", " ") for c in CONTAINERS),
    ]
    return tuple(sorted({word for text in texts for word in text.lower().split()}))


class Speaker:
    """Makes sentences about a look; left and right, before and behind are those of its first picture."""

    def __init__(self, tokenizer: MiniTokenizer) -> None:
        self.tokenizer = tokenizer

    def say(self, things: Sequence[Thing], rng: np.random.Generator) -> Sentence:
        """One sentence of a random kind."""
        kinds = [self._exists, self._count]
        if things:
            kinds += [self._point, self._point, self._mention, self._mention, self._caption]
        if sum(t.places[0] is not None for t in things) > 1:
            kinds += [self._relation, self._relation]
        return kinds[rng.integers(len(kinds))](things, rng)

    def compose(self, *parts: str | tuple[str, int], answer: int | None = None) -> Sentence:
        """Parts are text, or (phrase, thing); those from number `answer` on are the answer."""
        ids, nouns, start = [BOS_ID], [], None
        for i, part in enumerate(parts):
            if i == answer:
                start = len(ids)
            ids += self.tokenizer(part if isinstance(part, str) else part[0])
            if not isinstance(part, str):
                nouns.append((len(ids) - 1, part[1]))
        ids.append(END_ID)
        return Sentence(tuple(ids), len(ids) if start is None else start, tuple(nouns))

    def _phrase(self, things: Sequence[Thing], index: int, rng: np.random.Generator) -> tuple[str, int]:
        phrases = things[index].phrases
        return phrases[rng.integers(len(phrases))], index

    def _point(self, things: Sequence[Thing], rng: np.random.Generator) -> Sentence:
        return self.compose("where is the", self._phrase(things, int(rng.integers(len(things))), rng), "?")

    def _mention(self, things: Sequence[Thing], rng: np.random.Generator) -> Sentence:
        """A thing among words that mean nothing, as most words of a small model's reader do."""
        before, behind = ("".join(rng.choice(LETTERS, n)) for n in rng.integers(1, 4, 2))
        index = int(rng.integers(len(things)))
        return self.compose(f"{before} the", self._phrase(things, index, rng), behind)

    def _caption(self, things: Sequence[Thing], rng: np.random.Generator) -> Sentence:
        order = rng.permutation(len(things))[:3]
        parts: list[str | tuple[str, int]] = ["there is a"]
        for place, index in enumerate(order):
            parts += [*(["and a"] if place else []), self._phrase(things, int(index), rng)]
        return self.compose(*parts, ".", answer=1)

    def _relation(self, things: Sequence[Thing], rng: np.random.Generator) -> Sentence:
        """`what is left of the bowl ? the pear`: the nearest thing on that side, where there is one."""
        shown = [i for i, t in enumerate(things) if t.places[0]]
        centres = np.array([t.places[0] or (np.nan, np.nan) for t in things])
        index = shown[rng.integers(len(shown))]
        away = centres - centres[index]
        side, axis, sign = (("left of", 0, -1), ("right of", 0, 1), ("behind", 1, -1), ("in front of", 1, 1))[
            rng.integers(4)
        ]
        there = (away[:, axis] * sign > 0.08) & (np.abs(away[:, axis]) > np.abs(away[:, 1 - axis]))
        asked = self._phrase(things, index, rng)
        if not there.any():
            return self.compose(f"what is {side} the", asked, "?", "nothing", answer=3)
        found = int(np.where(there, (away**2).sum(1), np.inf).argmin())
        return self.compose(f"what is {side} the", asked, "? the", self._phrase(things, found, rng), answer=3)

    def _exists(self, things: Sequence[Thing], rng: np.random.Generator) -> Sentence:
        if things and rng.random() < 0.5:
            return self.compose(
                "is there a", self._phrase(things, int(rng.integers(len(things))), rng), "?", "yes", answer=3
            )
        shown = [ITEMS[t.name] for t in things if t.name in ITEMS]
        absent = [i for i in ITEMS.values() if not any(i.name == s.name or conflict(i, s) for s in shown)]
        item = absent[rng.integers(len(absent))]
        return self.compose("is there a", item.aliases[rng.integers(len(item.aliases))], "?", "no", answer=3)

    def _count(self, things: Sequence[Thing], rng: np.random.Generator) -> Sentence:
        return self.compose("how many things are there ?", NUMBERS[len(things)], answer=1)
