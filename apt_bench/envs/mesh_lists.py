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
    """The display lists of one GL context; it must be current in every call."""

    def __init__(self, base: int, meshes: int) -> None:
        """base: MuJoCo's `MjrContext.baseMesh`. meshes: number of meshes; mesh i has the lists 2i and 2i + 1 (hull)."""
        from OpenGL import GL
        from OpenGL.raw.GL.VERSION.GL_1_0 import glCallLists

        self._base, self._set_base = base, GL.glListBase
        self._gates = GL.glGenLists(meshes) if meshes else 0
        self._marker = GL.glGenLists(1)
        self._empty = GL.glGenLists(2 * meshes) if meshes else 0
        for i in range(meshes):
            GL.glNewList(self._gates + i, GL.GL_COMPILE)
            glCallLists(1, GL.GL_UNSIGNED_INT, ctypes.byref(ctypes.c_uint32(2 * i)))
            GL.glEndList()
        GL.glNewList(self._marker, GL.GL_COMPILE)
        GL.glListBase(base)
        GL.glEndList()

    @contextmanager
    def without_reflection(self, scene: Any, unreflected: Sequence[int]) -> Iterator[None]:
        """In the block, `mjr_render` draws some meshes of a scene, by index in `scene.geoms`, but does not reflect
        them. The scene must have a mirror in view. Where the scene's flags exclude reflections, nothing is changed."""
        number, flags = scene.ngeom, scene.flags
        reflects = flags[FLAGS.mjRND_REFLECTION] and not flags[FLAGS.mjRND_SEGMENT]
        if not len(unreflected) or not reflects or number >= scene.maxgeom:
            yield
            return
        geoms = [scene.geoms[i] for i in unreflected]
        before = [geom.dataid for geom in geoms]
        marker = scene.geoms[number]
        mesh = mujoco.mjtGeom.mjGEOM_MESH
        mujoco.mjv_initGeom(marker, mesh, np.ones(3), np.zeros(3), np.eye(3).ravel(), np.ones(4, np.float32))
        marker.dataid = self._marker - self._base
        try:
            for geom, mine in zip(geoms, before, strict=True):
                geom.dataid = self._gates + mine // 2 - self._base
            scene.ngeom = number + 1
            self._set_base(self._empty)
            yield
        finally:
            scene.ngeom = number
            self._set_base(0)
            for geom, mine in zip(geoms, before, strict=True):
                geom.dataid = mine
