"""MuJoCo, imported without a GL library, whatever `MUJOCO_GL` and `PYOPENGL_PLATFORM` say: `gl.Canvas` loads one when
the first image is asked for. Everything here imports it as `from apt_bench.envs.mj import mujoco`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["mujoco", "no_gl"]


@contextmanager
def no_gl() -> Iterator[None]:
    """While it lasts, `MUJOCO_GL` says that nothing is to be rendered; MuJoCo and robosuite read it when imported."""
    old = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        yield
    finally:
        if old is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = old


with no_gl():
    import mujoco
