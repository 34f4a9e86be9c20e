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
from apt_bench.envs.libero.visibility import Visibility
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
        self._visibility = Visibility(model)

    def render(self, data: Any, camera: int, size: int = IMAGE_SIZE) -> np.ndarray:
        """Render uint8 (size, size, 3), turned by 180 degrees. Reads the kinematics in `data` and changes nothing."""
        return np.ascontiguousarray(
            self.canvas.draw(self.scene, size, self._update(data, camera))[::-1, ::-1]
        )

    def render_depth(self, data: Any, camera: int, size: int = IMAGE_SIZE) -> tuple[np.ndarray, np.ndarray]:
        """`render`, and the image's depth in m, float32 (size, size), turned like the image."""
        image, depth = self.canvas.draw_depth(self.scene, size, self._update(data, camera))
        return np.ascontiguousarray(image[::-1, ::-1]), np.ascontiguousarray(depth[::-1, ::-1])

    def _update(self, data: Any, camera: int) -> list[int]:
        """Fill the scene with what changes this camera's image.

        MuJoCo draws the whole scene a second time for the first reflective plane or box (the stove's top, a box), also
        where the camera does not see it.

        Returns:
            Indices of meshes in the scene that this second drawing can leave out.
        """
        self.camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            self.model, data, self.option, self.perturb, self.camera, mujoco.mjtCatBit.mjCAT_ALL, self.scene
        )
        if self.model.light_castshadow.any():  # what is not seen may cast a shadow
            return []
        geoms = [
            (i, geom, geom.objid)
            for i, geom in enumerate(self.scene.geoms[: self.scene.ngeom])
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM
        ]
        corners = self._visibility.corners(data)
        seen = self._visibility.seen(data, camera, corners)
        mirrors = [(geom, number) for _, geom, number in geoms if _reflects(geom)]
        reflected = np.zeros(len(seen), bool)
        if any(seen[number] for _, number in mirrors):
            first, number = mirrors[0]
            found = None
            if first.type == mujoco.mjtGeom.mjGEOM_BOX and seen[number]:
                found = self._visibility.reflected(data, camera, number, corners)
            if found is None:  # there may be no second drawing, or one that must be complete
                return []
            reflected = found
        else:
            for geom, _ in mirrors:
                geom.reflectance = 0.0
        for _, geom, number in geoms:
            if not seen[number] and not reflected[number]:
                geom.type = mujoco.mjtGeom.mjGEOM_NONE
        if not reflected.any():
            return []
        mesh = mujoco.mjtGeom.mjGEOM_MESH
        return [i for i, geom, number in geoms if geom.type == mesh and not reflected[number]]

    def free(self) -> None:
        """Free the GL objects."""
        self.canvas.free()


def _reflects(geom: Any) -> bool:
    """Whether MuJoCo lets a geom of a scene reflect the others, if it is the first such geom."""
    kinds = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX)
    return bool(geom.type in kinds and geom.reflectance > 0 and geom.rgba[3] >= 0.995)
