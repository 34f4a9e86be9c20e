"""Render images as robosuite does, and turn them as LIBERO's protocol does.

MuJoCo returns pixels with the bottom row first. LIBERO's protocol turns that image by 180 degrees (`[::-1, ::-1]`). The
result is upright, but it is a mirror image: a vertical flip alone would have been correct. Use `camera_geometry` with
`mirrored=True`: its focal length along x is negative, so `K @ (R.T @ (point - position))` gives the pixel in the
mirror image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from apt_bench.envs.gl_context import Canvas
from apt_bench.envs.mujoco_helpers import IMAGE_SIZE
from apt_bench.envs.mujoco_no_gl import mujoco

MAX_GEOMS = 1000  # robosuite's
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)


class Renderer:
    """Draws one model. Its GL objects take about 1 GB; each cached model has its own.

    Args:
        model: The model.
        draft: Without multisampling, in about half the time. Edges are not smoothed, so only for training images that
            are scaled down.
    """

    def __init__(self, model: Any, draft: bool = False):
        self.model, self.draft = model, draft
        self.canvas = Canvas(model.vis.global_.offwidth, model.vis.global_.offheight)
        quality = model.vis.quality
        samples, quality.offsamples = quality.offsamples, 0 if draft else quality.offsamples
        self.canvas.load(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        quality.offsamples = samples
        self.scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self.camera = mujoco.MjvCamera()
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.option = mujoco.MjvOption()
        self.option.geomgroup[0] = 0  # collision shapes
        self.option.geomgroup[1] = 1  # visual shapes
        self.perturb = mujoco.MjvPerturb()
        reflects = (model.geom_matid >= 0) & (model.mat_reflectance[model.geom_matid] > 0)
        boxes = model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
        self._mirrors: list[int] = np.flatnonzero(reflects & boxes).tolist()

    def render(self, data: Any, camera: int, size: int = IMAGE_SIZE) -> np.ndarray:
        """Render uint8 (size, size, 3), turned by 180 degrees. Reads the kinematics in `data` and changes nothing."""
        self._update(data, camera)
        return np.ascontiguousarray(self.canvas.draw(self.scene, size)[::-1, ::-1])

    def render_depth(self, data: Any, camera: int, size: int = IMAGE_SIZE) -> tuple[np.ndarray, np.ndarray]:
        """`render`, and the image's depth in m, float32 (size, size), turned like the image."""
        self._update(data, camera)
        image, depth = self.canvas.draw_depth(self.scene, size)
        return np.ascontiguousarray(image[::-1, ::-1]), np.ascontiguousarray(depth[::-1, ::-1])

    def _update(self, data: Any, camera: int) -> None:
        self.camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            self.model, data, self.option, self.perturb, self.camera, mujoco.mjtCatBit.mjCAT_ALL, self.scene
        )
        if hidden := [geom for geom in self._mirrors if self._outside(data, camera, geom)]:
            for drawn in self.scene.geoms[: self.scene.ngeom]:
                if drawn.objtype == mujoco.mjtObj.mjOBJ_GEOM and drawn.objid in hidden:
                    drawn.reflectance = 0.0

    def _outside(self, data: Any, camera: int, geom: int) -> bool:
        """Whether a box lies outside the image. MuJoCo draws the whole scene a second time for each reflective box,
        also for one that the camera does not see; without its reflectance the image is the same."""
        corners = (
            data.geom_xpos[geom]
            + (CORNERS * self.model.geom_size[geom]) @ data.geom_xmat[geom].reshape(3, 3).T
        )
        x, y, z = ((corners - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)).T
        edge = -z * np.tan(
            np.radians(self.model.cam_fovy[camera]) / 2
        )  # half the image's side at that distance
        return bool((x > edge).all() or (-x > edge).all() or (y > edge).all() or (-y > edge).all())

    def free(self) -> None:
        """Free the GL objects."""
        self.canvas.free()
