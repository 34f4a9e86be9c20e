"""Images of one compiled scene: upright, not mirrored."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from apt_bench import rendering
from apt_bench.core.errors import UserError
from apt_bench.envs.base import Camera

SIZE = 256
LIMIT = 512
MAX_GEOMS = 400
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])


class Renderer:
    """One GL context for a process; `load` puts a model's meshes and textures into it (about 10 ms)."""

    def __init__(self) -> None:
        self._gl: Any = None
        self._context: Any = None
        self._model: Any = None

    def load(self, model: Any) -> None:
        """Draw this model from now on."""
        if model is self._model:
            return
        if self._gl is None:
            self._gl = rendering.make_context(LIMIT, LIMIT)
        self._gl.make_current()
        if self._context is not None:
            self._context.free()
        self._model = model
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[1] = 1
        self._option.sitegroup[:] = 0

    def render(self, model: Any, data: Any, camera: str, size: int = SIZE) -> np.ndarray:
        """uint8 (size, size, 3). Reads the kinematics in `data` and changes nothing."""
        return self._pixels(model, data, camera, size)

    def segment(self, model: Any, data: Any, camera: str, size: int = SIZE) -> np.ndarray:
        """int32 (size, size): the geom id behind each pixel, -1 for none."""
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
        if not 0 < size <= LIMIT:
            raise UserError(f"An image of {size} pixels was asked for. Ask for 1 to {LIMIT}.")
        self.load(model)
        self._gl.make_current()
        rect = mujoco.MjrRect(0, 0, size, size)
        self._camera.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(
            model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(rect, self._scene, self._context)
        pixels = np.empty((size, size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, rect, self._context)
        return np.ascontiguousarray(pixels[::-1])  # MuJoCo hands out the bottom row first

    def free(self) -> None:
        """Free the GL objects; the next `load` makes new ones."""
        if self._gl is not None:
            self._gl.make_current()
            if self._context is not None:
                self._context.free()
            self._gl.free()
        self.__init__()  # type: ignore[misc]


def camera_geometry(model: Any, data: Any, camera: str, size: int = SIZE) -> Camera:
    """The pinhole camera behind an image; pixel centres lie at integers."""
    index = model.camera(camera).id
    focal = 0.5 * size / np.tan(np.deg2rad(model.cam_fovy[index]) / 2)
    centre = (size - 1) / 2
    pose = np.eye(4)
    pose[:3, :3] = data.cam_xmat[index].reshape(3, 3) @ _OPENGL_TO_OPENCV
    pose[:3, 3] = data.cam_xpos[index]
    return Camera(K=np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1.0]]), pose=pose)
