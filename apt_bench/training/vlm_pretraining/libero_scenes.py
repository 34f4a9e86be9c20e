"""Scenes of LIBERO for pretraining: the layouts of the suite libero_drawn, under seeds of their own.

An object that is the only one of its category has its category's names. Of two bowls, each has the relations in which
it stands and the other one does not; of two other objects, one is the left and one the right one. Nothing of LIBERO-PRO
and no file of initial states is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from apt_bench.envs.base import AGENTVIEW, WRIST, Camera, Scene, SceneObject
from apt_bench.envs.libero import LiberoEnv
from apt_bench.envs.libero.bddl import read_bddl
from apt_bench.envs.libero.drawn_tasks import RELATIONS, names
from apt_bench.envs.libero.tasks import bddl_path
from apt_bench.envs.mujoco_helpers import IMAGE_SIZE, camera_geometry
from apt_bench.envs.mujoco_no_gl import mujoco
from apt_bench.envs.segmentation import Segmenter
from apt_bench.suites import EpisodeSpec, load_suite
from apt_bench.training.config import OBSERVATIONS_PER_SCENE
from apt_bench.training.vlm_pretraining.scenes import Rendered, RenderedObject

SUITE = "libero_drawn"
SEED = 2_000_003
"""Seed of the pretraining scenes; no run of the suite uses it."""

RUN = 20
"""Scenes in a row from one compiled model, because compiling takes seconds."""

REACH = np.array([0.6, 0.6, 0.4, 0.6, 0.3, 0.7, 0.8])
"""Largest distance (rad) of each joint from its position at the start, in a random pose."""

REGION = np.array([[-0.30, 0.22], [-0.34, 0.34], [0.03, 0.40]])
"""Bounds in m of the end effector in a random pose: x and y from the middle of the workspace, and height above the
lowest object."""

CAMERAS = {AGENTVIEW: "agentview", WRIST: "robot0_eye_in_hand"}

ABSENT = (
    "pear",
    "banana",
    "hammer",
    "toy car",
    "toothbrush",
    "blue cube",
    "candle",
    "pink cup",
    "shoe",
    "spoon",
)
"""Things that no LIBERO scene shows."""


PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "cabinet_top": ("top_drawer", ("top drawer", "top layer of the drawer", "top drawer of the cabinet")),
    "cabinet_middle": (
        "middle_drawer",
        ("middle drawer", "middle layer of the drawer", "middle drawer of the cabinet"),
    ),
    "cabinet_bottom": (
        "bottom_drawer",
        ("bottom drawer", "bottom layer of the drawer", "bottom drawer of the cabinet"),
    ),
    "button": ("knob", ("knob", "knob of the stove")),
}
"""End of a body's name -> the kind of a fixture's part, and its noun phrases."""

LONG_PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "microdoorroot": ("microwave_door", ("microwave door", "door of the microwave")),
    "burner_plate": ("burner", ("burner", "burner of the stove")),
}
"""The same, in LIBERO-Long only."""

COMPARTMENTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    f"{side}_contain_region": (
        f"{side}_compartment",
        (f"{side} compartment", f"{side} compartment of the caddy"),
    )
    for side in ("back", "front", "left", "right")
}
"""End of a region's name -> the kind of a caddy's compartment, and its noun phrases. In LIBERO-Long only."""

ALONE: Mapping[str, tuple[str, ...]] = {"white_yellow_mug": ("mug", "cup")}
"""Further names in LIBERO-Long, where no other mug is in the scene."""


class LiberoScenes:
    """A `SceneSource`.

    Args:
        cells: Cells of the suite libero_drawn, at least one.

    Raises:
        UserError: A cell does not exist.
    """

    longest_noise = 4

    def __init__(self, cells: tuple[str, ...]) -> None:
        suite = load_suite(SUITE)
        self._cells = cells
        self._specs = [suite.select([cell], episodes=1, seed=SEED) for cell in cells]
        categories: dict[str, None] = {}
        for specs in self._specs:
            for spec in specs:
                categories |= dict.fromkeys(_categories(spec))
        self._told = {c: names(c) for c in categories}
        if {"wooden_cabinet", "white_cabinet", "flat_stove"} & set(categories):
            self._told |= dict(PARTS.values())
        if any(_is_long(spec) for specs in self._specs for spec in specs):
            self._told |= dict([*PARTS.values(), *LONG_PARTS.values(), *COMPARTMENTS.values()])
        self.kinds: Mapping[str, str] = {kind: self._told[kind][0] for kind in sorted(self._told)}
        self.robot_sentence = "pick up the {} and place it in the basket"

    def identity(self) -> list[Any]:
        """See `SceneSource`."""
        scenes = [[spec.args for spec in specs] for specs in self._specs]
        return [SUITE, load_suite(SUITE).version, SEED, RUN, dict(self.kinds), list(self._cells), scenes]

    def texts(self) -> Sequence[str]:
        """See `SceneSource`."""
        relations = [phrase for phrases in RELATIONS.values() for phrase in phrases]
        alone = [name for kind in ALONE if kind in self.kinds for name in ALONE[kind]]
        return [*(n for told in self._told.values() for n in told), *ABSENT, *relations, "not", *alone]

    def absent(self, shown: Sequence[str], rng: np.random.Generator) -> str:
        """See `SceneSource`."""
        others = [*ABSENT, *(name for kind, name in self.kinds.items() if kind not in shown)]
        return others[rng.integers(len(others))]

    def group(self, kind: str) -> str:
        """`objects`."""
        return "objects"

    def render(self, scenes: range) -> Iterator[Rendered]:
        """See `SceneSource`. The first observation is at an episode's start, the others at random poses of the arm."""
        spec: EpisodeSpec
        env, segmenter = LiberoEnv(), Segmenter(lambda scene: parts(scene, spec))
        try:
            for index in scenes:
                spec = self._spec(index)
                env.reset(spec, privileged=True)
                rng = np.random.default_rng((SEED, index))
                for k in range(OBSERVATIONS_PER_SCENE):
                    if k:
                        _move(env, rng)
                    yield _observe(env, segmenter, spec)
        finally:
            segmenter.close()
            env.close()

    def _spec(self, index: int) -> EpisodeSpec:
        """Scene number `index`. RUN scenes in a row share a compiled model. Cells take turns, and so do the scenes of
        LIBERO-Long, which have unequal numbers of tasks."""
        run = index // RUN
        specs = self._specs[run % len(self._specs)]
        rng = np.random.default_rng((SEED, run))
        group = specs[rng.integers(len(specs))].group
        if _is_long(specs[0]):
            groups = sorted({spec.group for spec in specs})
            group = groups[run // len(self._specs) % len(groups)]
        same = [s for s in specs if s.group == group]
        spec = same[int(np.random.default_rng((SEED, 1, index)).integers(len(same)))]
        key = dataclasses.replace(spec.key, init=index)
        return dataclasses.replace(spec, key=key, args={**spec.args, "draft": True})


def _categories(spec: EpisodeSpec) -> list[str]:
    problem = read_bddl(bddl_path(spec.args["benchmark"], spec.args["task"]))
    return [
        *problem.objects.values(),
        *(c for n, c in problem.fixtures.items() if n != c and "table" not in c),
    ]


def _is_long(spec: EpisodeSpec) -> bool:
    return bool(spec.args["benchmark"] == "libero_10")


def _observe(env: LiberoEnv, segmenter: Segmenter, spec: EpisodeSpec) -> Rendered:
    scene = env.scene
    shown = {
        name: camera_geometry(scene.model, scene.data, scene.model.camera(own).id, mirrored=True)
        for name, own in CAMERAS.items()
    }
    # LIBERO's images are mirror images. Policies mirror them back, and so does this.
    images = tuple(env.frame(name, IMAGE_SIZE)[:, ::-1] for name in CAMERAS)
    labels = segmenter.labels(scene, shown, IMAGE_SIZE // 2)
    objects: list[RenderedObject] = []
    compartments: list[RenderedObject] = []
    for value, name in enumerate(segmenter.names, 1):
        whole, _, part = name.partition(":")
        found = scene.objects[whole]
        kind, told = {**PARTS, **LONG_PARTS}[part] if part else (found.category, phrases(found, scene, spec))
        objects.append(RenderedObject(kind, told, tuple(labels[c][:, ::-1] == value for c in CAMERAS)))
        if found.category == "desk_caddy":
            for end, (kind, told) in COMPARTMENTS.items():
                site = scene.regions[f"{whole}_{end}"].site
                inside = []
                for mask, own in zip(objects[-1].masks, CAMERAS.values(), strict=True):
                    camera = camera_geometry(scene.model, scene.data, scene.model.camera(own).id, len(mask))
                    inside.append(mask & _opening(scene, site, camera, len(mask)))
                compartments.append(RenderedObject(kind, told, tuple(inside)))
    return Rendered(images, (*objects, *compartments))


def _opening(scene: Scene, site: int, camera: Camera, size: int) -> np.ndarray:
    """Bool mask (size, size) of the top face of a box-shaped site."""
    axes = scene.data.site_xmat[site].reshape(3, 3)
    corners = np.array(list(product((-1, 1), repeat=3))) * scene.model.site_size[site] @ axes.T
    top = corners[np.argsort(corners[:, 2])[4:]]
    around = np.argsort(np.arctan2(top[:, 1], top[:, 0]))
    corners = scene.data.site_xpos[site] + top[around]
    local = (corners - camera.pose[:3, 3]) @ camera.pose[:3, :3]
    canvas = Image.new("1", (size, size))
    if (local[:, 2] > 0.01).all():
        pixels = (local / local[:, 2:]) @ camera.K.T
        ImageDraw.Draw(canvas).polygon([(float(u), float(v)) for u, v, _ in pixels], fill=1)
    return np.asarray(canvas)


def parts(scene: Scene, spec: EpisodeSpec) -> dict[str, list[int]]:
    """Geoms of every object, and of the parts of fixtures as `OBJECT:END OF THE BODY'S NAME`."""
    known = (*PARTS, *(LONG_PARTS if _is_long(spec) else ()))
    found: dict[str, list[int]] = {}
    for name, one in scene.objects.items():
        for geom in one.geoms:
            body = scene.model.body(scene.model.geom_bodyid[geom]).name
            part = next((end for end in known if body.endswith(end)), "")
            found.setdefault(f"{name}:{part}" if part else name, []).append(geom)
    return found


def phrases(found: SceneObject, scene: Scene, spec: EpisodeSpec) -> tuple[str, ...]:
    """Noun phrases that mean this object alone."""
    alike = [o.name for o in scene.objects.values() if o.category == found.category]
    if len(alike) == 1:
        others = [o.name for o in scene.objects.values() if "mug" in o.category and o is not found]
        return names(found.category) + (() if others else ALONE.get(found.category, ()))
    if _is_long(spec):
        return _left_or_right(found, scene, alike)
    own, other = (spec.args["wanted"][k] for k in ("target", "other"))
    if found.name != alike[0]:
        own, other = other, own
    said = [*RELATIONS[own], *(f"not {phrase}" for phrase in RELATIONS[other])]
    return tuple(f"{name} {phrase}" for phrase in said for name in names(found.category)[:2])


def _left_or_right(found: SceneObject, scene: Scene, alike: list[str]) -> tuple[str, ...]:
    """Phrases for one of two objects of a category. In the first image, left is -y of the world."""
    across = [float(scene.data.xpos[scene.objects[name].body][1]) for name in alike]
    side = "left" if alike[int(np.argmin(across))] == found.name else "right"
    return tuple(f"{side} {name}" for name in names(found.category))


def _move(env: LiberoEnv, rng: np.random.Generator) -> None:
    """Move the arm to a random pose above the objects, with the hand pointing down."""
    scene = env.scene
    model, data, robot = scene.model, scene.data, scene.robot
    joints = [j for j in range(model.njnt) if model.joint(j).name.startswith("robot0_joint")]
    addresses = [int(model.jnt_qposadr[j]) for j in joints]
    start = data.qpos[addresses].copy()
    lowest = min(float(data.xpos[o.body][2]) for o in scene.objects.values() if o.movable)
    assert env.simulation is not None
    low, high = REGION.T + np.array([*env.simulation.env.workspace_offset[:2], lowest])
    for _ in range(400):
        data.qpos[addresses] = start + rng.uniform(-1, 1, len(addresses)) * REACH
        mujoco.mj_kinematics(model, data)
        place = data.site_xpos[robot.grip_site]
        down = -data.site_xmat[robot.grip_site][8]
        if (low < place).all() and (place < high).all() and down > 0.97:
            break
    mujoco.mj_forward(model, data)
