"""GL display lists that let MuJoCo's reflection pass leave out meshes.

MuJoCo draws the scene of a reflective box twice: first mirrored, into the box's upper side, then as it is. Both passes
draw all geoms. `mjr_render` has no switch for it, but draws a mesh by calling the display list `baseMesh + dataid`. A
geom whose `dataid` names a gate calls MuJoCo's own list relative to GL's list base instead. The base is that of empty
lists while the mirrored geoms are drawn. The last opaque geom, a marker that draws nothing, sets it to `baseMesh`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from apt_bench.envs.mujoco_no_gl import mujoco

FLAGS = mujoco.mjtRndFlag


class MeshLists:
    """The display lists of one GL context, made when they are first needed. The context must be current in every call.

    Args:
        base: MuJoCo's `MjrContext.baseMesh`.
        meshes: Number of meshes. Mesh i has the lists 2i and 2i + 1 (its hull), counted from `base`.
    """

    def __init__(self, base: int, meshes: int) -> None:
        self._base, self._meshes = base, meshes
        self._first = 0  # one gate for each mesh, the marker, two empty lists for each mesh

    def _make(self) -> None:
        from OpenGL import GL
        from OpenGL.raw.GL.VERSION.GL_1_0 import glCallLists

        self._first = GL.glGenLists(3 * self._meshes + 1)
        for i in range(self._meshes):
            GL.glNewList(self._first + i, GL.GL_COMPILE)
            glCallLists(1, GL.GL_UNSIGNED_INT, ctypes.byref(ctypes.c_uint32(2 * i)))
            GL.glEndList()
        GL.glNewList(self._first + self._meshes, GL.GL_COMPILE)
        GL.glListBase(self._base)
        GL.glEndList()

    def free(self) -> None:
        """Delete the lists."""
        from OpenGL import GL

        if self._first:
            GL.glDeleteLists(self._first, 3 * self._meshes + 1)
        self._first = 0

    @contextmanager
    def without_reflection(self, scene: Any, unreflected: Sequence[int]) -> Iterator[None]:
        """In the block, `mjr_render` draws some meshes of a scene, by index in `scene.geoms`, but does not reflect
        them. The scene must have a mirror in view. Where the scene's flags exclude reflections, nothing is changed."""
        number, flags = scene.ngeom, scene.flags
        reflects = flags[FLAGS.mjRND_REFLECTION] and not flags[FLAGS.mjRND_SEGMENT]
        if not len(unreflected) or not reflects or number >= scene.maxgeom:
            yield
            return
        from OpenGL import GL

        if not self._first:
            self._make()
        gates, marker_list = self._first, self._first + self._meshes
        geoms = [scene.geoms[i] for i in unreflected]
        before = [geom.dataid for geom in geoms]
        marker = scene.geoms[number]
        mesh = mujoco.mjtGeom.mjGEOM_MESH
        mujoco.mjv_initGeom(marker, mesh, np.ones(3), np.zeros(3), np.eye(3).ravel(), np.ones(4, np.float32))
        marker.dataid = marker_list - self._base
        try:
            for geom, mine in zip(geoms, before, strict=True):
                geom.dataid = gates + mine // 2 - self._base
            scene.ngeom = number + 1
            GL.glListBase(marker_list + 1)
            yield
        finally:
            scene.ngeom = number
            GL.glListBase(0)
            for geom, mine in zip(geoms, before, strict=True):
                geom.dataid = mine
