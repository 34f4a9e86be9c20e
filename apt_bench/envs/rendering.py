"""Choose and report the GL library that MuJoCo renders with.

`MUJOCO_GL` names the library, where it is set. Otherwise EGL is tried (on a GPU, or in software with Mesa's llvmpipe),
then OSMesa (always in software). Each trial runs in its own process, because a failing GL library may end its process.
A trial renders an image; creating a context is not enough. `PYOPENGL_PLATFORM` is set to the same library, in this
process and its children, and replaced where it has another value. Nothing here runs before the first image is rendered.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line, say

CANDIDATES = ("egl", "osmesa")
KNOWN = (*CANDIDATES, "glfw", "cgl")
ADVICE = (
    "On Debian or Ubuntu: apt-get install libegl1 libgl1-mesa-dri (EGL, in software or with the GPU's own driver), "
    "or libosmesa6 (software). Policies that use no camera need neither."
)
PROBE_SECONDS = 120
"""Seconds after which a trial of a GL library is ended."""

_PROBE = """
import importlib, json, os, sys, time
def draw():
    context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(256, 256)
    context.make_current()
    import mujoco, numpy as np
    from OpenGL import GL
    model = mujoco.MjModel.from_xml_string(sys.argv[2])
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    scene = mujoco.MjvScene(model, maxgeom=10)
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
    mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, mjr)
    mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene)
    rect = mujoco.MjrRect(0, 0, 256, 256)
    pixels = np.zeros((256, 256, 3), np.uint8)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        mujoco.mjr_render(rect, scene, mjr)
        mujoco.mjr_readPixels(pixels, None, rect, mjr)
        seconds.append(time.perf_counter() - began)
    red, green, blue = pixels[128, 128].tolist()
    if not red > 2 * max(green, blue, 1) or pixels[4, 4].tolist() == pixels[128, 128].tolist() or GL.glGetError():
        raise RuntimeError("a context was created, but a red ball rendered in it is missing from the image")
    found = [GL.glGetString(n).decode(errors="replace") for n in (GL.GL_VENDOR, GL.GL_RENDERER, GL.GL_VERSION)]
    return [*found, round(min(seconds), 4)]
try:
    found = draw()
except BaseException as error:
    try:
        found = str(error)
    except Exception:
        found = ""
    found = found or type(error).__name__
print(json.dumps(found), flush=True)
os._exit(0)  # without the GL library's exit handlers
"""

_PICTURE = """<mujoco><visual><global offwidth="256" offheight="256"/></visual><worldbody>
<light pos="0 0 4" dir="0 0 -1"/><geom type="plane" size="2 2 0.1" rgba="0.3 0.5 0.3 1"/>
<geom type="sphere" size="0.3" pos="0 0 0.3" rgba="1 0 0 1"/><camera pos="0 0 2"/></worldbody></mujoco>"""


@dataclass(frozen=True)
class Backend:
    """A GL library that works on this machine. `seconds`: time to render a nearly empty image of 256 x 256 pixels."""

    name: str  # egl, osmesa, ...
    vendor: str
    renderer: str
    version: str
    seconds: float = 0.0

    @property
    def software(self) -> bool:
        """Whether it renders on the CPU."""
        return any(word in self.renderer.lower() for word in ("llvmpipe", "softpipe", "software", "swrast"))


@functools.cache
def probe(name: str) -> Backend | str:
    """Render an image in a separate process. Return the backend, or the last line of the error."""
    environ = {**os.environ, "MUJOCO_GL": "disable"}
    if name in CANDIDATES:
        environ["PYOPENGL_PLATFORM"] = name
    command = [sys.executable, "-P", "-c", _PROBE, name, _PICTURE]
    try:
        done = subprocess.run(
            command,
            env=environ,
            capture_output=True,
            timeout=PROBE_SECONDS,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return f"no image within {PROBE_SECONDS} s"
    for line in done.stdout.splitlines():
        if line.startswith("["):
            return Backend(name, *json.loads(line))
        if line.startswith('"'):
            return one_line(json.loads(line), 300)
    if done.returncode < 0:
        return f"its process was killed by signal {-done.returncode}"
    return one_line((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1], 300)


@functools.cache
def choose_backend() -> str:
    """Return the name of the backend to use, and set `MUJOCO_GL` and `PYOPENGL_PLATFORM` for this process and its
    children. Raises UserError where no backend works."""
    name = os.environ.get("MUJOCO_GL", "").lower().strip()
    if name and name not in KNOWN:
        raise UserError(
            f"MUJOCO_GL={name} is not a known GL library. Unset it, or set it to one of {', '.join(KNOWN)}."
        )
    name = name or _first_working()
    os.environ["MUJOCO_GL"] = name
    if name in CANDIDATES:
        _set_pyopengl_platform(name)
    return name


def _first_working() -> str:
    failures: list[str] = []
    for name in CANDIDATES:
        found = probe(name)
        if isinstance(found, Backend):
            if failures:
                say(f"{'; '.join(failures)}. Images are rendered with {name} instead, in software.")
            return name
        failures.append(f"{name}: {found}")
    raise UserError(f"No GL library for headless rendering works ({'; '.join(failures)}). {ADVICE}")


def _set_pyopengl_platform(name: str) -> None:
    """Set the variable that PyOpenGL reads once, at its first import."""
    old = os.environ.get("PYOPENGL_PLATFORM", "")
    if old and old.lower() != name:
        say(f"PYOPENGL_PLATFORM={old} contradicts MUJOCO_GL={name}; {name} is used.")
    os.environ["PYOPENGL_PLATFORM"] = name


def import_backend(name: str) -> Any:
    """Import MuJoCo's module for GL contexts of this backend. Raises UserError where it cannot be imported."""
    loaded = getattr(sys.modules.get("OpenGL.platform"), "PLATFORM", None)
    platform = type(loaded).__module__.rpartition(".")[2]  # OpenGL.platform.egl
    if name in CANDIDATES and loaded is not None and platform != name:
        raise UserError(
            f"PyOpenGL was already imported for '{platform}', so {name} cannot be used in this process. Set "
            f"PYOPENGL_PLATFORM={name} before Python starts."
        )
    try:
        return importlib.import_module(f"mujoco.{name}")
    except Exception as error:  # the exceptions of PyOpenGL, ctypes and the library have no common type
        raise UserError(does_not_work(name, why(error))) from None


def describe() -> Backend:
    """Return the backend in use with its vendor and renderer, for `doctor` and `run.json`.

    Raises UserError where no backend works, or the one that `MUJOCO_GL` names does not."""
    name = choose_backend()
    found = probe(name)
    if isinstance(found, Backend):
        return found
    raise UserError(does_not_work(name, found))


def does_not_work(name: str, reason: str) -> str:
    """The error message for a chosen backend that cannot be used."""
    return f"MUJOCO_GL={name} does not work here ({reason}). {ADVICE}"


def why(error: BaseException) -> str:
    """The message of an exception. Those of PyOpenGL may fail when they are converted to text."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return one_line(text or type(error).__name__, 300)
