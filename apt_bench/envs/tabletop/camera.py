"""Render images of a compiled scene: upright and not mirrored."""

from __future__ import annotations

from typing import Any

import numpy as np

from apt_bench.envs.gl_context import Canvas
from apt_bench.envs.mujoco_helpers import IMAGE_SIZE
from apt_bench.envs.mujoco_no_gl import mujoco

MAX_IMAGE_SIZE = 512
MAX_GEOMS = 400


class Renderer:
    """One GL context for all models of a process. Loading a model's meshes and textures takes about 10 ms."""

    def __init__(self) -> None:
        self._canvas: Canvas | None = None
        self._model: Any = None

    def load(self, model: Any) -> Canvas:
        """Load a model into the GL context, unless it is already loaded."""
        if self._canvas is None:
            self._canvas = Canvas(MAX_IMAGE_SIZE, MAX_IMAGE_SIZE)
        if model is not self._model:
            self._canvas.load(model)
            self._model = model
            self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            self._camera = mujoco.MjvCamera()
            self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            self._option = mujoco.MjvOption()
            self._option.geomgroup[:] = 0
            self._option.geomgroup[1] = 1
            self._option.sitegroup[:] = 0
        return self._canvas

    def render(self, model: Any, data: Any, camera: str, size: int = IMAGE_SIZE) -> np.ndarray:
        """Render uint8 (size, size, 3). Reads the kinematics in `data` and changes nothing."""
        return self._pixels(model, data, camera, size)

    def render_depth(
        self, model: Any, data: Any, camera: str, size: int = IMAGE_SIZE
    ) -> tuple[np.ndarray, np.ndarray]:
        """`render`, and the image's depth in m, float32 (size, size)."""
        image, depth = self._update(model, data, camera).draw_depth(self._scene, size)
        return np.ascontiguousarray(image[::-1]), np.ascontiguousarray(depth[::-1])

    def segment(self, model: Any, data: Any, camera: str, size: int = IMAGE_SIZE) -> np.ndarray:
        """Render int32 (size, size): the geom id behind each pixel, -1 where there is none."""
        self.load(model)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 1
        self._scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        try:
            rgb = self._pixels(model, data, camera, size).astype(np.int32)
        finally:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        index = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2] - 1
        geom = np.full(self._scene.ngeom + 1, -1, dtype=np.int32)
        for k in range(self._scene.ngeom):
            drawn = self._scene.geoms[k]
            if drawn.objtype == mujoco.mjtObj.mjOBJ_GEOM and drawn.segid >= 0:
                geom[drawn.segid] = drawn.objid
        return np.asarray(geom[np.clip(index, -1, self._scene.ngeom - 1)])

    def _pixels(self, model: Any, data: Any, camera: str, size: int) -> np.ndarray:
        canvas = self._update(model, data, camera)
        return np.ascontiguousarray(canvas.draw(self._scene, size)[::-1])

    def _update(self, model: Any, data: Any, camera: str) -> Canvas:
        canvas = self.load(model)
        self._camera.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(
            model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        return canvas

    def free(self) -> None:
        """Free the GL objects. The next `load` creates new ones."""
        if self._canvas is not None:
            self._canvas.free()
        self._canvas = self._model = None
