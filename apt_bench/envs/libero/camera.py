"""Images as robosuite renders them, delivered as LIBERO's policies get them.

MuJoCo hands out pixels with the bottom row first. LIBERO's protocol turns that image by 180 degrees (`[::-1, ::-1]`),
which puts it upright and, as only a vertical flip would have been right, also exchanges left and right: the delivered
image is a mirror image. `camera_geometry` says so with a negative focal length along x, so that
`K @ (R.T @ (point - position))` gives the pixel of the delivered image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from apt_bench.envs.base import Camera
from apt_bench.envs.gl import Canvas
from apt_bench.envs.mj import mujoco

SIZE = 256
MAX_GEOMS = 1000  # robosuite's
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])


class Renderer:
    """Draws one model. Its GL objects take about 1 GB, one per cached model."""

    def __init__(self, model: Any):
        self.model = model
        self.canvas = Canvas(model.vis.global_.offwidth, model.vis.global_.offheight)
        self.canvas.load(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        self.scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self.camera = mujoco.MjvCamera()
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.option = mujoco.MjvOption()
        self.option.geomgroup[0] = 0  # collision shapes
        self.option.geomgroup[1] = 1  # visual shapes
        self.perturb = mujoco.MjvPerturb()

    def render(self, data: Any, camera: int, size: int = SIZE) -> np.ndarray:
        """uint8 (size, size, 3), turned by 180 degrees once. Reads the kinematics in `data` and changes nothing."""
        self.camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            self.model, data, self.option, self.perturb, self.camera, mujoco.mjtCatBit.mjCAT_ALL, self.scene
        )
        return np.ascontiguousarray(self.canvas.draw(self.scene, size)[::-1, ::-1])

    def free(self) -> None:
        """Free the GL objects."""
        self.canvas.free()


def camera_geometry(model: Any, data: Any, camera: int, size: int = SIZE) -> Camera:
    """The pinhole camera behind the delivered (mirrored) image; pixel centres lie at integers."""
    focal = 0.5 * size / np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
    centre = (size - 1) / 2
    pose = np.eye(4)
    pose[:3, :3] = data.cam_xmat[camera].reshape(3, 3) @ _OPENGL_TO_OPENCV
    pose[:3, 3] = data.cam_xpos[camera]
    return Camera(K=np.array([[-focal, 0, centre], [0, focal, centre], [0, 0, 1.0]]), pose=pose)
