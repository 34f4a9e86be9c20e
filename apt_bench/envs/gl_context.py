"""A GL context of our own, current only while it draws.

Other code of the process may have one too. robosuite's renderer draws and frees in whatever context is current, and
frees when Python collects it: it would draw into ours, or delete what is in ours, and every image after that would be
whatever memory held. So each call here puts back the context that it found, and looks at what it got.
"""

from __future__ import annotations

import atexit
import importlib
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.envs import rendering
from apt_bench.envs.mujoco_no_gl import mujoco

_UNREAD = np.random.default_rng(0).integers(0, 256, (4096, 3), np.uint8)
"""What stands in the first row of an image until it is read."""


class Canvas:
    """A GL context with one model's meshes and textures in it. Any thread may use it, one at a time."""

    def __init__(self, width: int, height: int) -> None:
        """width, height: of the largest image, pixels. Raises UserError where no GL library works."""
        self._backend = rendering.choose_backend()
        self._gl: Any = None
        self._mjr: Any = None
        module = rendering.import_backend(self._backend)
        gl_context = importlib.import_module("mujoco.gl_context")
        if not hasattr(gl_context, "GLContext"):  # mujoco was imported with its rendering disabled
            gl_context.GLContext = module.GLContext  # type: ignore[attr-defined]  # for mujoco.Renderer
        try:
            with _kept(self._backend):
                self._gl = module.GLContext(width, height)
        except Exception as error:  # of PyOpenGL or mujoco: no type in common
            raise UserError(rendering.does_not_work(self._backend, rendering.why(error))) from None
        # At exit the contexts must go before the GL library does: register last, to be called first.
        _ALIVE.add(self)
        atexit.unregister(_free_all)
        atexit.register(_free_all)

    def load(self, model: Any, font: Any = mujoco.mjtFontScale.mjFONTSCALE_50) -> None:
        """Draw this model from now on."""
        with self._current():
            if self._mjr is not None:
                self._mjr.free()
            self._mjr = mujoco.MjrContext(model, font)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._mjr)
            self._check()

    def draw(self, scene: Any, size: int) -> np.ndarray:
        """uint8 (size, size, 3) of a `mujoco.MjvScene`, the bottom row first. Raises UserError for a size that does
        not fit, RuntimeError where the image was not drawn."""
        mjr = self._mjr
        limit = min(mjr.offWidth, mjr.offHeight, len(_UNREAD))
        if not 0 < size <= limit:
            raise UserError(f"An image of {size} pixels was asked for. Ask for 1 to {limit}.")
        rect = mujoco.MjrRect(0, 0, size, size)
        pixels = np.empty((size, size, 3), np.uint8)
        pixels[0] = _UNREAD[:size]
        with self._current():
            mujoco.mjr_render(rect, scene, mjr)
            mujoco.mjr_readPixels(pixels, None, rect, mjr)
            self._check()
        if np.array_equal(pixels[0], _UNREAD[:size]):
            raise RuntimeError("an image was not drawn: the GL library left the pixels as they were")
        return pixels

    def free(self) -> None:
        """Free the GL objects. May be called twice."""
        if self._gl is None:
            return
        with _kept(self._backend):
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
        with _kept(self._backend):
            self._gl.make_current()
            yield

    def _check(self) -> None:
        """Raises RuntimeError where the GL library reports an error, or what was loaded is not there."""
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
def _kept(backend: str) -> Iterator[None]:
    """Afterwards this thread has the GL context that it had before, or none."""
    find = _FIND.get(backend)
    restore = find() if find else None
    try:
        yield
    finally:
        if restore:
            with suppress(Exception):  # it was the one that has just been freed
                restore()


def _find_egl() -> Callable[[], Any]:
    from mujoco.egl import EGL_DISPLAY
    from mujoco.egl import egl_ext as EGL

    context = EGL.eglGetCurrentContext()
    if not context:
        none = EGL.EGL_NO_SURFACE
        return partial(EGL.eglMakeCurrent, EGL_DISPLAY, none, none, EGL.EGL_NO_CONTEXT)
    surfaces = [EGL.eglGetCurrentSurface(which) for which in (EGL.EGL_DRAW, EGL.EGL_READ)]
    return partial(EGL.eglMakeCurrent, EGL.eglGetCurrentDisplay(), *surfaces, context)


def _find_osmesa() -> Callable[[], Any]:
    from OpenGL import GL, osmesa

    context = osmesa.OSMesaGetCurrentContext()
    if not context:
        return partial(osmesa.OSMesaMakeCurrent, None, None, GL.GL_FLOAT, 0, 0)
    width, height, _, buffer = osmesa.OSMesaGetColorBuffer(context)
    kind = osmesa.OSMesaGetIntegerv(osmesa.OSMESA_TYPE)
    return partial(osmesa.OSMesaMakeCurrent, context, buffer, kind, width, height)


def _find_glfw() -> Callable[[], Any]:
    glfw = sys.modules["glfw"]
    return partial(glfw.make_context_current, glfw.get_current_context())


_FIND: dict[str, Callable[[], Callable[[], Any]]] = {
    "egl": _find_egl,
    "osmesa": _find_osmesa,
    "glfw": _find_glfw,
}
