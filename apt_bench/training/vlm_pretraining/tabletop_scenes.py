"""Scenes of the tabletop for pretraining.

They are drawn as the suites draw theirs, with seen and unseen objects alike (a web-scale VLM has seen both), from a
seed that no suite uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from apt_bench.envs.base import AGENTVIEW
from apt_bench.envs.mujoco_helpers import IMAGE_SIZE
from apt_bench.envs.mujoco_no_gl import mujoco
from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.envs.tabletop.catalog import CONTAINERS, EXTRA_CONTAINERS, ITEMS, conflict
from apt_bench.envs.tabletop.layouts import containers_of
from apt_bench.envs.tabletop.robots import PANDA
from apt_bench.envs.tabletop.scene_model import camera_axes
from apt_bench.envs.tabletop.scene_spec import AZIMUTH, DISTANCE, ELEVATION, View
from apt_bench.suites import EpisodeKey, EpisodeSpec
from apt_bench.training.config import OBSERVATIONS_PER_SCENE
from apt_bench.training.vlm_pretraining.scenes import CAMERAS, Rendered, RenderedObject

SEED = 1_000_003
"""Seed of the pretraining scenes."""


SPLITS = ("seen", "unseen")


REACH = np.array([0.7, 0.6, 0.4, 0.6, 0.3, 0.7, 0.8])
"""Largest distance (rad) of each joint from its home position in a random pose."""


def phrases(kind: str) -> tuple[str, ...]:
    """Noun phrases for an item or a container of the catalogue."""
    return ITEMS[kind].aliases if kind in ITEMS else (kind.replace("_", " "),)


class TabletopScenes:
    """A `SceneSource`. more_containers: see `PretrainConfig`."""

    robot_sentence = "move the {} to the plate ."
    longest_noise = 1

    def __init__(self, more_containers: bool = False) -> None:
        self.more_containers = more_containers
        containers = [c for c in CONTAINERS if more_containers or c not in EXTRA_CONTAINERS]
        self.kinds: Mapping[str, str] = {k: phrases(k)[0] for k in (*ITEMS, *containers)}

    def identity(self) -> list[Any]:
        """See `SceneSource`."""
        return ["tabletop", SEED, sorted(ITEMS), sorted(set(self.kinds) - set(ITEMS))]

    def texts(self) -> Sequence[str]:
        """See `SceneSource`."""
        return [text for kind in self.kinds for text in phrases(kind)]

    def absent(self, shown: Sequence[str], rng: np.random.Generator) -> str:
        """See `SceneSource`."""
        visible = [ITEMS[kind] for kind in shown if kind in ITEMS]
        others = [i for i in ITEMS.values() if not any(i.name == s.name or conflict(i, s) for s in visible)]
        item = others[rng.integers(len(others))]
        return item.aliases[rng.integers(len(item.aliases))]

    def group(self, kind: str) -> str:
        """`seen` or `unseen` for items, `containers` for containers."""
        return ITEMS[kind].split if kind in ITEMS else "containers"

    def render(self, scenes: range) -> Iterator[Rendered]:
        """See `SceneSource`. The first observation is at the suites' start, the second at a random pose."""
        env = TabletopEnv()
        try:
            for index in scenes:
                env.reset(scene(index, self.more_containers))
                for k in range(OBSERVATIONS_PER_SCENE):
                    if k == 1:
                        _move(env, np.random.default_rng((SEED, index)))
                    yield _observe(env)
        finally:
            env.close()


def scene(index: int, more_containers: bool = False) -> EpisodeSpec:
    """Scene number `index`: the splits of items, containers and surroundings take turns, then the containers."""
    item, container, around = list(product(SPLITS, SPLITS, SPLITS))[index % 8]
    if more_containers and container == "seen":
        container = "seen6"
    args = {"layout": "table", "items": item, "containers": container, "surroundings": around}
    named = containers_of(args)
    task = f"to_{named[index // 8 % len(named)].replace(' ', '_')}"
    key = EpisodeKey("pairs", "pairs", task, index // (8 * len(named)), SEED)
    return EpisodeSpec(key, "apt_bench.envs.tabletop:TabletopEnv", "", "", {}, 1, 1, args, "pairs")


def _observe(env: TabletopEnv) -> Rendered:
    masks: dict[str, list[np.ndarray]] = {}
    images = []
    for view, camera in enumerate(CAMERAS):
        images.append(env.frame(camera, IMAGE_SIZE))
        labels, values = env.segmentation(camera, IMAGE_SIZE // 2)
        for name, value in values.items():
            kind = name if name in ITEMS or name in CONTAINERS else name.rpartition("_")[0]
            if kind in ITEMS or kind in CONTAINERS:
                masks.setdefault(kind, [np.zeros_like(labels, bool) for _ in CAMERAS])[view] = labels == value
    objects = tuple(RenderedObject(kind, phrases(kind), tuple(found)) for kind, found in masks.items())
    return Rendered(tuple(images), objects)


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
