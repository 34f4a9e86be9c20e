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

    def free(self) -> None:
        """Free the GL objects."""
        self.canvas.free()
