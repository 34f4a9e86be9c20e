"""A GL context that is current only while it draws.

Other code in the process may have its own GL context. robosuite's renderer draws and frees GL objects in the context
that is current, and frees them when Python collects it. With apt-bench's context current it would draw into that
context or delete its objects, and every later image would be uninitialised memory. Each call here therefore restores
the context that it found, and checks what was drawn.
"""

from __future__ import annotations

import atexit
import importlib
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.envs import rendering
from apt_bench.envs.mesh_lists import MeshLists
from apt_bench.envs.mujoco_no_gl import mujoco

_UNREAD = np.random.default_rng(0).integers(0, 256, (4096, 3), np.uint8)
"""Random content of an image's first row before the image is read, to detect that nothing was read."""


class Canvas:
    """A GL context with the meshes and textures of one model. Any thread may use it, one at a time."""

    def __init__(self, width: int, height: int) -> None:
        """width, height: size in pixels of the largest image. Raises UserError where no GL library works."""
        self._backend = rendering.choose_backend()
        self._gl: Any = None
        self._mjr: Any = None
        self._lists: Any = None
        module = rendering.import_backend(self._backend)
        gl_context = importlib.import_module("mujoco.gl_context")
        if not hasattr(gl_context, "GLContext"):  # MuJoCo was imported with its rendering disabled
            gl_context.GLContext = module.GLContext  # type: ignore[attr-defined]  # for mujoco.Renderer
        try:
            with _restored(self._backend):
                self._gl = module.GLContext(width, height)
        except Exception as error:  # PyOpenGL's and MuJoCo's exceptions have no common type
            raise UserError(rendering.does_not_work(self._backend, rendering.why(error))) from None
        # At exit, contexts must be freed before the GL library. The last function registered is called first.
        _ALIVE.add(self)
        atexit.unregister(_free_all)
        atexit.register(_free_all)

    def load(self, model: Any, font: Any = mujoco.mjtFontScale.mjFONTSCALE_50) -> None:
        """Load the meshes and textures of a model."""
        with self._current():
            if self._mjr is not None:
                self._mjr.free()
            if self._lists is not None:
                self._lists.free()
            self._mjr = mujoco.MjrContext(model, font)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._mjr)
            self._lists = MeshLists(self._mjr.baseMesh, model.nmesh)
            self._check()

    def draw(self, scene: Any, size: int, unreflected: Sequence[int] = ()) -> np.ndarray:
        """Draw a `mujoco.MjvScene` as uint8 (size, size, 3), with the bottom row first.

        Args:
            scene: The scene.
            size: Pixels per side.
            unreflected: Indices of meshes in `scene.geoms` that MuJoCo's reflection pass leaves out. The scene must
                have a reflection pass then, or these meshes are not drawn at all.

        Raises UserError for a size that does not fit, and RuntimeError where the image was not drawn."""
        return self._draw(scene, size, unreflected)

    def draw_depth(
        self, scene: Any, size: int, unreflected: Sequence[int] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """`draw`, and the depth of the same image, float32 (size, size): m along the optical axis."""
        near, far = scene.camera[0].frustum_near, scene.camera[0].frustum_far
        buffer = np.empty((size, size), np.float32)
        self._mjr.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # 1 = near: precise at a distance
        pixels = self._draw(scene, size, unreflected, buffer)
        return pixels, np.asarray(near * far / (near + buffer.astype(float) * (far - near)), np.float32)

    def _draw(
        self, scene: Any, size: int, unreflected: Sequence[int], depth: np.ndarray | None = None
    ) -> np.ndarray:
        mjr = self._mjr
        limit = min(mjr.offWidth, mjr.offHeight, len(_UNREAD))
        if not 0 < size <= limit:
            raise UserError(f"The image size is {size} pixels; it must be 1 to {limit}.")
        rect = mujoco.MjrRect(0, 0, size, size)
        pixels = np.empty((size, size, 3), np.uint8)
        pixels[0] = _UNREAD[:size]
        with self._current(), self._lists.without_reflection(scene, unreflected):
            mujoco.mjr_render(rect, scene, mjr)
            mujoco.mjr_readPixels(pixels, depth, rect, mjr)
            self._check()
        if np.array_equal(pixels[0], _UNREAD[:size]):
            raise RuntimeError("an image was not drawn: the GL library left the pixels unchanged")
        return pixels

    def free(self) -> None:
        """Free the GL objects. May be called twice."""
        if self._gl is None:
            return
        with _restored(self._backend):
            self._gl.make_current()
            if self._mjr is not None:
                self._mjr.free()
            self._gl.free()
        self._gl = self._mjr = None

    def __del__(self) -> None:
        with suppress(Exception):
            self.free()

    @contextmanager
    def _current(self) -> Iterator[None]:
        if self._gl is None:
            raise RuntimeError("this GL context has been freed")
        with _restored(self._backend):
            self._gl.make_current()
            yield

    def _check(self) -> None:
        """Raise RuntimeError where the GL library reports an error, or the loaded objects are gone."""
        from OpenGL import GL

        if error := GL.glGetError():
            raise RuntimeError(f"an image was not drawn: the GL library reports error {error:#x}")
        if not (GL.glIsFramebuffer(self._mjr.offFBO) and GL.glIsList(self._mjr.baseBuiltin)):
            raise RuntimeError("an image was not drawn: other code has freed this context's GL objects")


_ALIVE: weakref.WeakSet[Canvas] = weakref.WeakSet()


def _free_all() -> None:
    for canvas in list(_ALIVE):
        with suppress(Exception):
            canvas.free()


@contextmanager
def _restored(backend: str) -> Iterator[None]:
    """Afterwards, make the GL context current that was current in this thread before, or none."""
    current = _CURRENT.get(backend)
    restore = current() if current else None
    try:
        yield
    finally:
        if restore:
            with suppress(Exception):  # that context has just been freed
                restore()


def _current_egl() -> Callable[[], Any]:
    from mujoco.egl import EGL_DISPLAY
    from mujoco.egl import egl_ext as EGL

    context = EGL.eglGetCurrentContext()
    if not context:
        none = EGL.EGL_NO_SURFACE
        return partial(EGL.eglMakeCurrent, EGL_DISPLAY, none, none, EGL.EGL_NO_CONTEXT)
    surfaces = [EGL.eglGetCurrentSurface(which) for which in (EGL.EGL_DRAW, EGL.EGL_READ)]
    return partial(EGL.eglMakeCurrent, EGL.eglGetCurrentDisplay(), *surfaces, context)


def _current_osmesa() -> Callable[[], Any]:
    from OpenGL import GL, osmesa

    context = osmesa.OSMesaGetCurrentContext()
    if not context:
        return partial(osmesa.OSMesaMakeCurrent, None, None, GL.GL_FLOAT, 0, 0)
    width, height, _, buffer = osmesa.OSMesaGetColorBuffer(context)
    kind = osmesa.OSMesaGetIntegerv(osmesa.OSMESA_TYPE)
    return partial(osmesa.OSMesaMakeCurrent, context, buffer, kind, width, height)


def _current_glfw() -> Callable[[], Any]:
    glfw = sys.modules["glfw"]
    return partial(glfw.make_context_current, glfw.get_current_context())


_CURRENT: dict[str, Callable[[], Callable[[], Any]]] = {
    "egl": _current_egl,
    "osmesa": _current_osmesa,
    "glfw": _current_glfw,
}
"""Backend -> a function that returns a function which makes the now current context current again."""
