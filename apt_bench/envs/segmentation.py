"""Segmentation: which pixel shows which named object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from apt_bench.envs.base import Camera, Scene
from apt_bench.envs.gl_context import Canvas
from apt_bench.envs.mujoco_no_gl import mujoco

MAX_GEOMS = 2000


class Segmenter:
    """Renders labels with a GL context of its own. The labels are one physics substep (2 ms) newer than the images.

    Args:
        parts: Gives the geoms of everything that has a label, by name; by default, those of each object.
    """

    def __init__(self, parts: Callable[[Scene], Mapping[str, Sequence[int]]] | None = None) -> None:
        self.names: tuple[str, ...] = ()
        self._parts = parts or (lambda scene: {name: found.geoms for name, found in scene.objects.items()})
        self._model: Any = None

    def labels(self, scene: Scene, cameras: Mapping[str, Camera], size: int) -> dict[str, np.ndarray]:
        """uint8 (size, size) per camera, mirrored where its images are: 0 = background, i = `names[i - 1]`."""
        if scene.model is not self._model:
            self._load(scene, size)
        found = {}
        for name, camera in cameras.items():
            # The scene's camera at the image's position; environments name their cameras differently.
            index = int(np.linalg.norm(scene.data.cam_xpos - camera.pose[:3, 3], axis=1).argmin())
            labels = self._label_of_geom[self._geoms(scene.data, index, size)]
            found[name] = labels[:, ::-1] if camera.K[0, 0] < 0 else labels
        return found

    def close(self) -> None:
        """Free the GL context."""
        if self._model is not None:
            self._canvas.free()
            self._model = None

    def _load(self, scene: Scene, size: int) -> None:
        self.close()
        model = scene.model
        parts = self._parts(scene)
        self.names = tuple(sorted(parts))
        self._label_of_geom = np.zeros(model.ngeom + 1, np.uint8)  # the last: no geom
        for label, name in enumerate(self.names, 1):
            self._label_of_geom[list(parts[name])] = label
        self._canvas = Canvas(size, size)
        quality = model.vis.quality
        samples, quality.offsamples = quality.offsamples, 0  # smoothed edges would be mixtures of two labels
        self._canvas.load(model)
        quality.offsamples = samples
        self._drawn = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self._drawn.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 1
        self._drawn.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # collision shapes, in LIBERO's scenes and ours
        self._option.sitegroup[:] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._model = model

    def _geoms(self, data: Any, camera: int, size: int) -> np.ndarray:
        """(size, size): id of the geom behind each pixel, -1 for none."""
        self._camera.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, everything, self._drawn)
        pixels = self._canvas.draw(self._drawn, size)
        geom_of_colour = np.full(self._drawn.ngeom + 1, -1)  # colour 0: nothing drawn
        for geom in self._drawn.geoms[: self._drawn.ngeom]:
            if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                geom_of_colour[geom.segid + 1] = geom.objid
        colour = pixels[::-1].astype(np.int32) @ np.array([1, 1 << 8, 1 << 16])
        return np.asarray(geom_of_colour[colour])
