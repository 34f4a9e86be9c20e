"""What LIBERO's and the tabletop's environments both read from MuJoCo: cameras, objects, body trees, a state hash."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from apt_bench.envs.base import Camera, SceneObject
from apt_bench.envs.mujoco_no_gl import mujoco

IMAGE_SIZE = 256
"""Width and height in pixels of the images in observations."""

_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])


def camera_geometry(
    model: Any, data: Any, camera: int, size: int = IMAGE_SIZE, mirrored: bool = False
) -> Camera:
    """The pinhole camera of a (size, size) image of the camera with this id. Pixel centres have integer coordinates.

    `mirrored`: left and right are exchanged in the image, so the focal length along x is negative.
    """
    focal = 0.5 * size / np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
    centre = (size - 1) / 2
    pose = np.eye(4)
    pose[:3, :3] = data.cam_xmat[camera].reshape(3, 3) @ _OPENGL_TO_OPENCV
    pose[:3, 3] = data.cam_xpos[camera]
    K = np.array([[-focal if mirrored else focal, 0, centre], [0, focal, centre], [0, 0, 1.0]])
    return Camera(K=K, pose=pose)


def scene_object(model: Any, name: str, category: str, root: int) -> SceneObject:
    """The object whose root body has the id `root`."""
    bodies = subtree(model, root)
    joints = [j for j in range(model.njnt) if model.jnt_bodyid[j] in bodies]
    free = [j for j in joints if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_FREE]
    return SceneObject(
        name=name,
        category=category,
        body=root,
        bodies=bodies,
        geoms=tuple(int(g) for g in np.flatnonzero(np.isin(model.geom_bodyid, bodies))),
        movable=bool(free),
        joints=tuple(j for j in joints if j not in free),
    )


def subtree(model: Any, root: int) -> tuple[int, ...]:
    """Ids of a body and of every body attached below it. MuJoCo numbers a parent before its children."""
    found = {root}
    for body in range(root + 1, model.nbody):
        if model.body_parentid[body] in found:
            found.add(body)
    return tuple(sorted(found))


def qpos_hash(data: Any) -> str:
    """The first 16 hex digits of the SHA-256 of `qpos`."""
    return hashlib.sha256(data.qpos.tobytes()).hexdigest()[:16]
