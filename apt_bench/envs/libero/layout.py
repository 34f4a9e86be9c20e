"""Move the objects of a LIBERO scene and keep what is occupied, see `drawn_layouts`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

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

SPOTS = 20
"""Places that are tried before an object is turned again."""

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

    def place_shape(self, name: str, area: Area) -> np.ndarray:
        """Put an object at a free place of the area. What its shapes cover must be free, not a circle around it.

        Returns:
            Its place, (2,).

        Raises:
            NoLayoutError: There is no free place.
        """
        data, address = self.scene.data, self._address(name)
        before = data.qpos[address : address + 7].copy()
        low, high = np.array(area).T
        for _ in range(TRIES // SPOTS):
            data.qpos[address : address + 7] = before
            self.put(name, before[:2], self.surface)
            covered = self._covered(name)
            for spot in self.rng.uniform(low, high, (SPOTS, 2)):
                moved = covered[:, :2] + spot - before[:2]
                away = np.linalg.norm(moved[:, None] - self._circles[:, :2], axis=2)
                if (away >= GAP + BETWEEN + self._circles[:, 2]).all():
                    data.qpos[address : address + 2] = spot
                    mujoco.mj_kinematics(self.scene.model, data)
                    self.occupy_shape(name)
                    return spot
        raise NoLayoutError(name)

    def move_fixture(self, name: str, spot: np.ndarray) -> None:
        """Move a fixture to a place (2,) and note its shapes as occupied. Its height and its turn stay.

        Raises:
            NoLayoutError: It would be closer than `GAP` to what is occupied.
        """
        body = self.scene.objects[name].body
        self.scene.model.body_pos[body, :2] += spot - self.spot(name)
        mujoco.mj_kinematics(self.scene.model, self.scene.data)
        covered = self._covered(name)
        away = np.linalg.norm(covered[:, None, :2] - self._circles[:, :2], axis=2)
        if (away < GAP + BETWEEN + self._circles[:, 2]).any():
            raise NoLayoutError(name)
        self.occupy_shape(name)

    def spot(self, name: str) -> np.ndarray:
        """Where an object or fixture is, (2,)."""
        return np.array(self.scene.data.xpos[self.scene.objects[name].body][:2])

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

    def occupy_shape(self, name: str) -> None:
        """Note what an object's shapes cover as occupied."""
        self._circles = np.vstack([self._circles, self._covered(name)])

    def put(self, name: str, spot: Sequence[float] | np.ndarray, height: float) -> None:
        """Put an object, turned at random, so that its lowest point is just above `height` at this place."""
        found = self.scene.objects[name]
        model, data = self.scene.model, self.scene.data
        address = self._address(name)
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

    def _address(self, name: str) -> int:
        """Index of an object's pose in `qpos`: position, then quaternion."""
        model = self.scene.model
        return int(model.jnt_qposadr[model.body_jntadr[self.scene.objects[name].body]])

    def _covered(self, name: str) -> np.ndarray:
        """Circles (n, 3) all over an object's collision shapes, at most one per square of side BETWEEN."""
        points = np.concatenate(self._boxes(self.scene.objects[name], GRID))[:, :2]
        points = BETWEEN * np.unique(np.round(points / BETWEEN), axis=0)
        return np.hstack([points, np.full((len(points), 1), BETWEEN)])

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
