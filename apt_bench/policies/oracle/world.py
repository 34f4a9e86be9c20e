"""The simulator's state as the expert reads it: collision points, heights, contacts and the gripper.

All lengths are in metres, in the world frame. The *tool frame* is that of the grip site: x along the finger axis,
y across it, z the approach direction, origin between the finger tips. Its rotation matrix has these axes as columns.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from apt_bench.envs.base import Scene
from apt_bench.envs.mujoco_no_gl import mujoco
from apt_bench.policies.oracle.arm import Arm, ancestors, subtree
from apt_bench.policies.oracle.variation import Variation

SPACING = 0.007  # m between two points on a surface
_GEOM = mujoco.mjtGeom


class World:
    """The live scene, read only, with the variation of the expert's motions."""

    def __init__(self, scene: Scene, variation: Variation | None = None) -> None:
        self.scene = scene
        self.variation = variation or Variation()
        self._local: dict[int, np.ndarray] = {}
        model = scene.model
        self._solid = (model.geom_contype | model.geom_conaffinity) != 0
        self._robot_bodies = subtree(model, scene.robot.body_root)
        self._robot_geoms = np.isin(model.geom_bodyid, self._robot_bodies)
        self.table_height = min((float(self.points(n)[:, 2].min()) for n in self.movables()), default=0.0)

    @cached_property
    def arm(self) -> Arm:
        """Kinematics of the arm."""
        return Arm(self.scene)

    # -- gripper -------------------------------------------------------------------------------------------------

    @property
    def gripper_position(self) -> np.ndarray:
        """Position (3,) between the finger tips."""
        return self.scene.data.site_xpos[self.scene.robot.grip_site].copy()

    @property
    def gripper_rotation(self) -> np.ndarray:
        """Rotation matrix (3, 3) of the tool frame."""
        return self.scene.data.site_xmat[self.scene.robot.grip_site].reshape(3, 3).copy()

    @property
    def gripper_opening(self) -> float:
        """Distance between the fingers (m)."""
        return self.scene.robot.opening(self.scene.data.qpos)

    def in_state(self, data: Any) -> World:
        """The same world with another state of the simulation (`mujoco.MjData`)."""
        other = copy.copy(self)
        other.scene = copy.copy(self.scene)
        other.scene.data = data
        other.arm = copy.copy(self.arm)
        other.arm.scene = other.scene
        return other

    @cached_property
    def open_gripper_boxes(self) -> np.ndarray:
        """Bounding boxes (n, 2, 3) of the open fingers, the palm and the flange: low and high corner, tool frame."""
        return self._gripper_boxes(self.scene.robot.max_opening)

    @cached_property
    def closed_gripper_boxes(self) -> np.ndarray:
        """As `open_gripper_boxes`, with the fingers closed."""
        return self._gripper_boxes(0.0)

    def _gripper_boxes(self, opening: float) -> np.ndarray:
        robot = self.scene.robot
        boxes: list[list[np.ndarray]] = []
        for geoms in robot.finger_geoms:
            points = self._points_from_gripper(geoms) @ self.gripper_rotation
            points[:, 0] += np.sign(points[:, 0].mean()) * (opening - self.gripper_opening) / 2
            boxes.append([points.min(0), points.max(0)])
        fingers = frozenset.union(*robot.finger_geoms)
        for body in self._gripper_bodies:
            solid = np.flatnonzero((self.scene.model.geom_bodyid == body) & self._solid).tolist()
            if solid := [g for g in solid if g not in fingers]:
                points = self._points_from_gripper(solid) @ self.gripper_rotation
                boxes.append([points.min(0), points.max(0)])
        return np.array(boxes)

    def lowest_corner(self, rotation: np.ndarray) -> float:
        """Height (m) of the lowest corner of the open gripper over the grip site; negative = below it."""
        return float(np.minimum(*(self.open_gripper_boxes * rotation[2]).swapaxes(0, 1)).sum(1).min())

    def gripper_clearance(
        self, points: np.ndarray, origin: np.ndarray, boxes: np.ndarray | None = None
    ) -> float:
        """Distance (m, largest of the three components) from the open gripper to the nearest point; negative = inside.

        points (3, n) and origin (3,) of the gripper: both along the axes of its tool frame. boxes: use these instead of
        the open gripper's.
        """
        local = points - origin[:, None]
        return min(
            float(np.maximum(low[:, None] - local, local - high[:, None]).max(0).min(initial=np.inf))
            for low, high in (self.open_gripper_boxes if boxes is None else boxes)
        )

    @cached_property
    def _gripper_bodies(self) -> list[int]:
        """Bodies of the gripper: the palm (parent of both fingers) and below, and up to the last link with a joint."""
        model = self.scene.model
        left, right = (
            ancestors(model, int(model.geom_bodyid[min(geoms)])) for geoms in self.scene.robot.finger_geoms
        )
        palm = next(b for b in left if b in right)
        chain = ancestors(model, palm)
        jointed = next(i for i, b in enumerate(chain) if model.body_jntnum[b])
        return [*subtree(model, palm), *chain[1 : jointed + 1]]

    def _points_from_gripper(self, geoms: Iterable[int]) -> np.ndarray:
        return np.concatenate([self._world_points(g) for g in geoms]) - self.gripper_position

    # -- objects -------------------------------------------------------------------------------------------------

    def movables(self) -> list[str]:
        """Names of the objects that have a free joint."""
        return [n for n, o in self.scene.objects.items() if o.movable]

    def points(self, name: str) -> np.ndarray:
        """Points (n, 3) on the collision surface of an object."""
        geoms = [g for g in self.scene.objects[name].geoms if self._solid[g]]
        return np.concatenate([self._world_points(g) for g in geoms]) if geoms else self.position(name)[None]

    def part_geoms(self, joint: int) -> frozenset[int]:
        """Collision geoms of the part that a hinge or slide moves."""
        model = self.scene.model
        bodies = subtree(model, int(model.jnt_bodyid[joint]))
        return frozenset(np.flatnonzero(np.isin(model.geom_bodyid, bodies) & self._solid).tolist())

    def part_points(self, joint: int) -> np.ndarray:
        """Points (n, 3) on the part that a hinge or slide moves."""
        return np.concatenate([self._world_points(g) for g in self.part_geoms(joint)])

    def part_obstacles(self, joint: int) -> np.ndarray:
        """Points (n, 3) on everything except that part, the robot and the table."""
        part = self.part_geoms(joint)
        geoms = [g for o in self.scene.objects.values() for g in o.geoms if self._solid[g] and g not in part]
        return np.concatenate([self._world_points(g) for g in geoms])

    def obstacles(self, *but: str) -> np.ndarray:
        """Points (n, 3) on everything except these objects, the robot and the table."""
        clouds = [self.points(n) for n in self.scene.objects if n not in but]
        return np.concatenate(clouds) if clouds else np.zeros((0, 3))

    def position(self, name: str) -> np.ndarray:
        """Position (3,) of the object's origin."""
        return self.scene.data.xpos[self.scene.objects[name].body].copy()

    def centre(self, name: str) -> np.ndarray:
        """Position (3,) of the object's centre of mass."""
        return self.scene.data.subtree_com[self.scene.objects[name].body].copy()

    def box(self, region: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Centre (3,), rotation (3, 3) and half size (3,) of a region's site box; None where it has no site."""
        site = self.scene.regions[region].site
        if site is None:
            return None
        data = self.scene.data
        return (
            data.site_xpos[site].copy(),
            data.site_xmat[site].reshape(3, 3).copy(),
            self.scene.model.site_size[site].copy(),
        )

    def _world_points(self, geom: int) -> np.ndarray:
        if geom not in self._local:
            self._local[geom] = surface_points(self.scene.model, geom)
        data = self.scene.data
        return self._local[geom] @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]

    # -- contacts ------------------------------------------------------------------------------------------------

    def grasped(self, name: str) -> bool:
        """Whether both fingers touch the object."""
        mine = set(self.scene.objects[name].geoms)
        partners = self._partners(mine)
        return all(partners & fingers for fingers in self.scene.robot.finger_geoms)

    def supported(self, name: str) -> bool:
        """Whether anything but the robot touches the object."""
        return any(not self._robot_geoms[g] for g in self._partners(set(self.scene.objects[name].geoms)))

    def _partners(self, mine: set[int]) -> set[int]:
        pairs = self.scene.data.contact.geom
        return {int(b) for a, b in pairs if a in mine and b not in mine} | {
            int(a) for a, b in pairs if b in mine and a not in mine
        }


def surface_points(model: Any, geom: int) -> np.ndarray:
    """Points (n, 3) about `SPACING` apart on a geom's surface, in the geom's frame; of a mesh, on its convex hull."""
    kind, size = model.geom_type[geom], model.geom_size[geom]
    if kind == _GEOM.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        return _hull_points(np.array(model.mesh_vert[start : start + count], dtype=float))
    if kind == _GEOM.mjGEOM_BOX:
        return _box_points(size)
    if kind == _GEOM.mjGEOM_PLANE:
        return np.zeros((1, 3))
    round_top = kind in (_GEOM.mjGEOM_SPHERE, _GEOM.mjGEOM_CAPSULE, _GEOM.mjGEOM_ELLIPSOID)
    radius = size if kind == _GEOM.mjGEOM_ELLIPSOID else np.array([size[0], size[0], size[0]])
    half = 0.0 if kind in (_GEOM.mjGEOM_SPHERE, _GEOM.mjGEOM_ELLIPSOID) else size[1]
    angles = np.linspace(0, 2 * np.pi, max(8, int(2 * np.pi * radius.max() / SPACING)), endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1)
    rows = [np.column_stack([ring * radius[:2], np.full(len(ring), z)]) for z in _grid(half)]
    for t in np.linspace(0, np.pi / 2 if round_top else 1, max(3, int(radius.max() / SPACING))):
        shrink, rise = (np.cos(t), np.sin(t) * radius[2]) if round_top else (t, 0.0)
        for sign in (-1, 1):
            z = np.full(len(ring), sign * (half + rise))
            rows.append(np.column_stack([ring * radius[:2] * shrink, z]))
    return np.concatenate(rows)


def _grid(half: float) -> np.ndarray:
    return np.linspace(-half, half, max(2, min(40, int(np.ceil(2 * half / SPACING)) + 1)))


def _box_points(half: np.ndarray) -> np.ndarray:
    faces = []
    for axis in range(3):
        a, b = (i for i in range(3) if i != axis)
        grid_a, grid_b = np.meshgrid(_grid(half[a]), _grid(half[b]), indexing="ij")
        for sign in (-1, 1):
            face = np.empty((grid_a.size, 3))
            face[:, a], face[:, b], face[:, axis] = grid_a.ravel(), grid_b.ravel(), sign * half[axis]
            faces.append(face)
    return np.concatenate(faces)


def _hull_points(vertices: np.ndarray) -> np.ndarray:
    try:
        triangles = vertices[ConvexHull(vertices).simplices]
    except QhullError:  # flat
        return vertices
    clouds = [vertices]
    edges = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=2).max(1)
    for corners, edge in zip(triangles, edges, strict=True):
        n = min(40, int(np.ceil(edge / SPACING)))
        i, j = (k.ravel() for k in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
        keep = i + j <= n
        a, b = (i[keep] / n)[:, None], (j[keep] / n)[:, None]
        clouds.append(corners[0] * (1 - a - b) + corners[1] * a + corners[2] * b)
    return np.concatenate(clouds)
