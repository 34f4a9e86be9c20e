"""What the privileged tier reads from the simulator: names, boxes and grasps of objects."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.envs.base import Scene
from apt_bench.envs.mujoco_no_gl import mujoco
from apt_bench.policies.code_as_policies.motion import ApiError, Arm
from apt_bench.policies.oracle.grasps import YAWS, find_grasps
from apt_bench.policies.oracle.motion import top_down_frame
from apt_bench.policies.oracle.world import World

VISIBLE = 1
"""Geom group of the shapes that are drawn, in LIBERO's scenes and the tabletop's."""

CORNERS = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T


def scene_of(arm: Arm) -> Scene:
    """The scene of the newest observation. Raises UserError where the environment gives none."""
    scene = arm.observation.scene
    if scene is None:
        raise UserError(
            "needs `Observation.scene`, which this environment does not provide. Run it in one that does."
        )
    return scene


def names(scene: Scene) -> list[str]:
    """Names of the objects, then of the regions that belong to an object."""
    regions = [n for n, r in scene.regions.items() if r.site is not None and r.parent in scene.objects]
    return [*scene.objects, *(n for n in regions if n not in scene.objects)]


def box(scene: Scene, name: object) -> tuple[np.ndarray, np.ndarray, Rotation]:
    """Centre (3,) and size (3,) of the box along the world's axes that encloses an object or a region, in m, and the
    orientation of the object. Raises ApiError for an unknown name."""
    known = names(scene)
    if not isinstance(name, str) or name not in known:
        raise ApiError(f"There is no object {name!r}. {did_you_mean(str(name), known)}")
    data = scene.data
    if name in scene.objects:
        thing = scene.objects[name]
        points = np.concatenate([_points(scene, g) for g in _visible(scene, thing.geoms)])
        quaternion = np.roll(data.xquat[thing.body], -1)
        return _enclosing(points, Rotation.from_quat(quaternion))
    site = scene.regions[name].site
    frame = data.site_xmat[site].reshape(3, 3)
    points = (CORNERS * scene.model.site_size[site]) @ frame.T + data.site_xpos[site]
    return _enclosing(points, Rotation.from_matrix(frame))


def grasp(arm: Arm, world: World, name: object) -> tuple[np.ndarray, Rotation]:
    """Position and orientation of the hand for the best top-down grasp of an object. Raises ApiError."""
    scene = scene_of(arm)
    box(scene, name)
    if name not in scene.objects or not scene.objects[str(name)].movable:
        raise ApiError(f"'{name}' cannot be moved, so it has no grasp.")
    # The expert's frame is that of the grip site. A fixed rotation leads to that of the hand.
    to_hand = world.gripper_rotation.T @ arm.rotation.as_matrix()
    found = find_grasps(world, str(name), limit=1, frames_to_try=[top_down_frame(yaw) for yaw in YAWS])
    if not found or found[0].cost >= 1:
        raise ApiError(f"No top-down grasp of '{name}' is free of collisions and within reach.")
    return found[0].position, Rotation.from_matrix(found[0].rotation @ to_hand)


def _visible(scene: Scene, geoms: tuple[int, ...]) -> list[int]:
    drawn = [g for g in geoms if scene.model.geom_group[g] == VISIBLE]
    return drawn or list(geoms)


def _points(scene: Scene, geom: int) -> np.ndarray:
    """Points (n, 3) that span a geom: the vertices of a mesh, else the corners of its box."""
    model, data = scene.model, scene.data
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        start = model.mesh_vertadr[mesh]
        local = model.mesh_vert[start : start + model.mesh_vertnum[mesh]].astype(float)
    else:
        local = model.geom_aabb[geom, :3] + CORNERS * model.geom_aabb[geom, 3:]
    return np.asarray(local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])


def _enclosing(points: np.ndarray, rotation: Rotation) -> tuple[np.ndarray, np.ndarray, Rotation]:
    low, high = points.min(0), points.max(0)
    return (low + high) / 2, high - low, rotation
