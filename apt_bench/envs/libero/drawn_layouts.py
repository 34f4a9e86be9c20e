"""Draw where the objects of a LIBERO scene are, for demonstrations and for pictures of a vision-language model.

A layout starts from robosuite's own placement, which LIBERO's BDDL file determines, and moves the movable objects. No
file of initial states is read, and nothing of LIBERO-PRO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.envs.base import Scene, SceneObject
from apt_bench.envs.mujoco_no_gl import mujoco

GAP = 0.025
"""Smallest distance in m between the bounding circles of two objects on the table."""

DROP = 0.004
"""Height in m from which an object falls onto its support."""

YAW = 0.5
"""Largest turn in rad of an object about the vertical axis, to each side."""

TRIES = 400
"""Draws of one object's place before the whole layout is drawn again, and draws of a layout before giving up."""

Area = tuple[tuple[float, float], tuple[float, float]]
"""Bounds in m of x and of y, world frame."""

CORNERS = np.array(list(product((-1, 1), repeat=3)))
GRID = np.array(list(product(np.linspace(-1, 1, 7), repeat=3)))
BETWEEN = 0.01
"""Radius in m of the circle around each point of a fixture."""


class NoLayoutError(Exception):
    """No layout fits."""


class Layout:
    """Moves the objects of a scene whose simulation has been reset, and keeps what is occupied.

    Args:
        scene: The scene.
        surface: Height in m of the table's surface, or of the floor.
        rng: Source of every draw.
    """

    def __init__(self, scene: Scene, surface: float, rng: np.random.Generator) -> None:
        self.scene, self.surface, self.rng = scene, surface, rng
        self._circles = np.zeros((0, 3))  # x, y and radius of what is occupied

    def place(self, name: str, area: Area) -> np.ndarray:
        """Put an object on the table at a free place of the area.

        Returns:
            Its place, (2,).

        Raises:
            NoLayoutError: There is no free place.
        """
        reach = self.radius(name)
        low, high = np.array(area).T
        for _ in range(TRIES):
            spot = self.rng.uniform(low, high)
            if self.free(spot, reach + GAP):
                self.put(name, spot, self.surface)
                self.occupy(spot, reach)
                return spot
        raise NoLayoutError(name)

    def free(self, spot: np.ndarray, reach: float) -> bool:
        """Whether nothing is closer to the place than `reach`."""
        away = np.linalg.norm(self._circles[:, :2] - spot, axis=1)
        return bool((away >= reach + self._circles[:, 2]).all())

    def occupy(self, spot: Sequence[float] | np.ndarray, radius: float) -> None:
        """Note that this circle is occupied."""
        self._circles = np.vstack([self._circles, [*spot, radius]])

    def occupy_fixtures(self) -> None:
        """Note every fixture as occupied: points all over its collision shapes."""
        for found in self.scene.objects.values():
            if not found.movable:
                points = np.concatenate(self._boxes(found, GRID))[:, :2]
                radius = np.full((len(points), 1), BETWEEN)
                self._circles = np.vstack([self._circles, np.hstack([points, radius])])

    def put(self, name: str, spot: Sequence[float] | np.ndarray, height: float) -> None:
        """Put an object, turned at random, so that its lowest point is just above `height` at this place."""
        found = self.scene.objects[name]
        model, data = self.scene.model, self.scene.data
        joint = int(model.body_jntadr[found.body])
        address = int(model.jnt_qposadr[joint])
        before = Rotation.from_quat(np.roll(data.qpos[address + 3 : address + 7], -1))
        turned = Rotation.from_euler("z", self.rng.uniform(-YAW, YAW)) * before
        data.qpos[address : address + 2] = spot
        data.qpos[address + 3 : address + 7] = np.roll(turned.as_quat(), 1)
        mujoco.mj_kinematics(model, data)
        lowest = min(corners[:, 2].min() for corners in self._boxes(found))
        data.qpos[address + 2] += height + DROP - lowest
        mujoco.mj_kinematics(model, data)

    def radius(self, name: str) -> float:
        """Largest horizontal distance in m of an object's collision shapes from its root body."""
        found = self.scene.objects[name]
        centre = self.scene.data.xpos[found.body][:2]
        return max(float(np.linalg.norm(box[:, :2] - centre, axis=1).max()) for box in self._boxes(found))

    def top(self, name: str) -> float:
        """Height in m of an object's highest point."""
        return max(float(box[:, 2].max()) for box in self._boxes(self.scene.objects[name]))

    def site(self, region: str) -> np.ndarray:
        """Position (3,) of a region's site."""
        site = self.scene.regions[region].site
        return np.array(self.scene.data.site_xpos[site])

    def _boxes(self, found: SceneObject, where: np.ndarray = CORNERS) -> list[np.ndarray]:
        """Points (n, 3) of the bounding box of each collision shape, in the world. `where`: (n, 3), in units of half
        its sides."""
        model, data = self.scene.model, self.scene.data
        boxes = []
        for geom in found.geoms:
            if model.geom_contype[geom] or model.geom_conaffinity[geom]:
                centre, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
                axes = data.geom_xmat[geom].reshape(3, 3)
                boxes.append(data.geom_xpos[geom] + (centre + where * half) @ axes.T)
        return boxes


def draw_layout(scene: Scene, kind: str, wanted: Mapping[str, Any], rng: np.random.Generator) -> None:
    """Draw a layout of this kind, see `LAYOUTS`.

    Args:
        scene: The scene, just reset. Positions of joints and objects are changed; velocities are not.
        kind: Key of `LAYOUTS`.
        wanted: Arguments of the kind.
        rng: Source of every draw.

    Raises:
        RuntimeError: No layout was found.
    """
    before = scene.data.qpos.copy()
    for _ in range(TRIES):
        scene.data.qpos[:] = before
        mujoco.mj_kinematics(scene.model, scene.data)
        surface, make = LAYOUTS[kind]
        layout = Layout(scene, surface, rng)
        try:
            make(layout, **wanted)
        except NoLayoutError:
            continue
        mujoco.mj_forward(scene.model, scene.data)
        return
    raise RuntimeError(f"no layout of kind '{kind}' found for {dict(wanted)}")


OBJECTS_AREA: Area = ((-0.25, 0.18), (-0.29, 0.12))
BASKET_AREAS: tuple[Area, Area] = (((-0.06, 0.06), (0.22, 0.29)), ((-0.12, 0.12), (0.18, 0.30)))


def basket(layout: Layout) -> None:
    """Groceries anywhere in front of the robot; the basket near its usual place, or further away from it."""
    name = next(n for n in layout.scene.objects if n.startswith("basket"))
    layout.place(name, BASKET_AREAS[int(layout.rng.random() < 0.3)])
    for other, found in layout.scene.objects.items():
        if found.movable and other != name:
            layout.place(other, OBJECTS_AREA)


TABLE: Area = ((-0.27, 0.18), (-0.14, 0.30))
USUAL = {"plate_1": (0.06, 0.20), "cookies_1": (0.07, 0.03), "glazed_rim_porcelain_ramekin_1": (-0.20, 0.20)}
"""Where LIBERO-Spatial's BDDL files put these, m."""
NEAR_USUAL = 0.06
APART = 0.05
"""Distance in m from its usual place that at least one of them keeps: evaluation starts with all at their places."""
DRAWER_OPEN = -0.156
"""Position in m of an open drawer's joint in LIBERO-Spatial."""
DRAWER_FLOOR = 1.063
"""Height in m of the top drawer's floor."""
DRAWER = "in the top drawer of the wooden cabinet"
BOWLS = ("akita_black_bowl_1", "akita_black_bowl_2")


def bowls(layout: Layout, target: str, other: str) -> None:
    """LIBERO-Spatial: the first bowl, which is the target, in the relation `target`; the second one in the relation
    `other`. Both are keys of `PLACES`. The bowls look the same."""
    if DRAWER in (target, other):
        _open_drawer(layout)
    layout.occupy_fixtures()
    scattered = layout.rng.random() < 0.6
    apart = []
    for name, usual in USUAL.items():
        (x, y), near = usual, NEAR_USUAL
        area = TABLE if scattered else ((x - near, x + near), (y - near, y + near))
        apart.append(float(np.linalg.norm(layout.place(name, area) - usual)))
    if max(apart) < APART:
        raise NoLayoutError("too close to LIBERO-Spatial's own layout")
    for bowl, relation in zip(BOWLS, (target, other), strict=True):
        PLACES[relation](layout, bowl)


def _beside(anchor: str) -> Any:
    def place(layout: Layout, bowl: str) -> None:
        centre = layout.scene.data.xpos[layout.scene.objects[anchor].body][:2]
        reach = layout.radius(bowl)
        for _ in range(TRIES):
            angle = layout.rng.uniform(0, 2 * np.pi)
            distance = layout.radius(anchor) + reach + layout.rng.uniform(0.005, 0.035)
            spot = centre + distance * np.array([np.cos(angle), np.sin(angle)])
            if _inside(spot) and layout.free(spot, reach + 0.002):
                return _stand(layout, bowl, spot)
        raise NoLayoutError(bowl)

    return place


def _between(layout: Layout, bowl: str) -> None:
    """Between plate and ramekin, on the line that joins them."""
    bodies = [layout.scene.objects[n].body for n in ("plate_1", "glazed_rim_porcelain_ramekin_1")]
    plate, ramekin = (layout.scene.data.xpos[b][:2] for b in bodies)
    share, aside = layout.rng.uniform(0.4, 0.65), layout.rng.normal(0, 0.012, 2)
    spot = plate + share * (ramekin - plate) + aside
    if np.linalg.norm(ramekin - plate) > 0.36 or not layout.free(spot, layout.radius(bowl) + 0.002):
        raise NoLayoutError(bowl)
    _stand(layout, bowl, spot)


def _centre(layout: Layout, bowl: str) -> None:
    spot = layout.rng.uniform((-0.11, -0.03), (-0.04, 0.03))
    if not layout.free(spot, layout.radius(bowl) + GAP):
        raise NoLayoutError(bowl)
    _stand(layout, bowl, spot)


def _on(support: str) -> Any:
    def place(layout: Layout, bowl: str) -> None:
        spot = layout.scene.data.xpos[layout.scene.objects[support].body][:2] + layout.rng.normal(0, 0.006, 2)
        layout.put(bowl, spot, layout.top(support))

    return place


def _on_region(region: str, spread: float) -> Any:
    def place(layout: Layout, bowl: str) -> None:
        site = layout.site(region)
        layout.put(bowl, site[:2] + layout.rng.uniform(-spread, spread, 2), site[2] + 0.008)

    return place


def _open_drawer(layout: Layout) -> None:
    model, data = layout.scene.model, layout.scene.data
    cabinet = layout.scene.objects["wooden_cabinet_1"]
    joint = next(j for j in cabinet.joints if "top" in model.joint(j).name)
    data.qpos[model.jnt_qposadr[joint]] = DRAWER_OPEN
    mujoco.mj_kinematics(model, data)


def _in_drawer(layout: Layout, bowl: str) -> None:
    spot = layout.site("wooden_cabinet_1_top_region")[:2] + layout.rng.normal(0, 0.006, 2)
    layout.put(bowl, spot, DRAWER_FLOOR)


def _inside(spot: np.ndarray) -> bool:
    return all(low <= value <= high for value, (low, high) in zip(spot, TABLE, strict=True))


def _stand(layout: Layout, bowl: str, spot: np.ndarray) -> None:
    layout.put(bowl, spot, layout.surface)
    layout.occupy(spot, layout.radius(bowl))


PLACES: dict[str, Any] = {
    "between the plate and the ramekin": _between,
    "next to the ramekin": _beside("glazed_rim_porcelain_ramekin_1"),
    "from table center": _centre,
    "on the cookie box": _on("cookies_1"),
    DRAWER: _in_drawer,
    "on the ramekin": _on("glazed_rim_porcelain_ramekin_1"),
    "next to the cookie box": _beside("cookies_1"),
    "on the stove": _on_region("flat_stove_1_cook_region", 0.02),
    "next to the plate": _beside("plate_1"),
    "on the wooden cabinet": _on_region("wooden_cabinet_1_top_side", 0.02),
}
"""What puts a bowl into a relation, for each relation of `drawn_tasks.RELATIONS`."""

GOAL_TABLE: Area = ((-0.27, 0.13), (-0.13, 0.28))
IN_FRONT = {"wooden_cabinet_1": ((0.085, -0.10), 0.13), "flat_stove_1": ((-0.05, 0.21), 0.09)}
"""LIBERO-Goal: where drawers open to and where things are pushed to, each a circle: centre and radius in m."""


def kitchen(layout: Layout, clear: Sequence[str] = ()) -> None:
    """LIBERO-Goal: bowl, plate, cream cheese and bottle anywhere on the table; nothing in front of the fixtures in
    `clear`."""
    layout.occupy_fixtures()
    for name in clear:
        layout.occupy(*IN_FRONT[name])
    for name, found in sorted(layout.scene.objects.items(), key=lambda one: -layout.radius(one[0])):
        if found.movable:
            layout.place(name, GOAL_TABLE)


LAYOUTS: dict[str, tuple[float, Any]] = {
    "basket": (0.0, basket),
    "bowls": (0.9, bowls),
    "kitchen": (0.9, kitchen),
}
"""Kinds of layouts (scenes of LIBERO-Object, -Spatial and -Goal): the surface's height in m, and what draws one."""
