"""Choose and report the GL library that MuJoCo renders with.

`MUJOCO_GL` decides where it is set. Otherwise EGL is tried (a GPU, or Mesa's llvmpipe in software), then OSMesa (always
software), each in a process of its own, because a GL library that fails may take its process with it. Nothing here
runs before the first image is asked for.
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

CANDIDATES = ("egl", "osmesa")
KNOWN = (*CANDIDATES, "glfw", "cgl")
MEND = (
    "On Debian or Ubuntu: apt-get install libegl1 libgl1-mesa-dri (EGL, in software or with the GPU's own driver), "
    "or libosmesa6 (software). Policies that look at no camera need none of them."
)

_PROBE = """
import importlib, json, sys
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(64, 64)
context.make_current()
from OpenGL import GL
print(json.dumps([GL.glGetString(n).decode() for n in (GL.GL_VENDOR, GL.GL_RENDERER, GL.GL_VERSION)]))
sys.stdout.flush()
context.free()
"""


@dataclass(frozen=True)
class Backend:
    """A GL library that works here. `software`: rendered by the CPU."""

    name: str  # egl, osmesa, ...
    vendor: str
    renderer: str
    version: str

    @property
    def software(self) -> bool:
        """Whether the CPU renders."""
        return any(word in self.renderer.lower() for word in ("llvmpipe", "softpipe", "software", "swrast"))


@functools.cache
def probe(name: str) -> Backend | str:
    """Make a GL context in a process of its own: the backend, or the last line of what went wrong."""
    environ = {**os.environ, "MUJOCO_GL": "disable"}
    if name in CANDIDATES:
        environ["PYOPENGL_PLATFORM"] = name
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, name], env=environ, capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return "no answer in 120 s"
    for line in done.stdout.splitlines():
        if line.startswith("["):
            return Backend(name, *json.loads(line))
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


@functools.cache
def choose_backend() -> str:
    """The name of the backend to use, left in `MUJOCO_GL` for child processes. Raises UserError where none works."""
    name = os.environ.get("MUJOCO_GL", "").lower().strip()
    if name in KNOWN:
        return name
    if name:
        raise UserError(f"MUJOCO_GL={name} is no renderer. Unset it, or set it to one of {', '.join(KNOWN)}.")
    failures = []
    for name in CANDIDATES:
        found = probe(name)
        if isinstance(found, Backend):
            os.environ["MUJOCO_GL"] = name
            return name
        failures.append(f"{name}: {found}")
    raise UserError(f"No GL library for headless rendering works ({'; '.join(failures)}). {MEND}")


def describe() -> Backend:
    """The backend in use with its vendor and renderer, for `doctor` and `run.json`. Raises UserError as above, and
    where the one that `MUJOCO_GL` names does not work."""
    name = choose_backend()
    found = probe(name)
    if isinstance(found, Backend):
        return found
    raise UserError(f"MUJOCO_GL={name} does not work here ({found}). {MEND}")


def make_context(width: int, height: int) -> Any:
    """A new GL context of the chosen backend. `mujoco` may have been imported with its own rendering disabled."""
    name = choose_backend()
    if name in CANDIDATES:
        os.environ.setdefault("PYOPENGL_PLATFORM", name)
    try:
        context_class = importlib.import_module(f"mujoco.{name}").GLContext
        gl_context = importlib.import_module("mujoco.gl_context")
        if not hasattr(gl_context, "GLContext"):
            gl_context.GLContext = context_class  # type: ignore[attr-defined]  # for mujoco.Renderer
        return context_class(width, height)
    except (ImportError, RuntimeError, AttributeError) as error:
        raise UserError(f"MUJOCO_GL={name} does not work here ({error}). {MEND}") from None
