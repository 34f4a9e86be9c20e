"""Import MuJoCo without a GL library, whatever `MUJOCO_GL` and `PYOPENGL_PLATFORM` are set to.

`gl_context.Canvas` loads a GL library when the first image is rendered. Every module of apt-bench imports MuJoCo with
`from apt_bench.envs.mujoco_no_gl import mujoco`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["mujoco", "no_gl"]


@contextmanager
def no_gl() -> Iterator[None]:
    """Set `MUJOCO_GL` to "disable" inside this context. MuJoCo and robosuite read it when they are imported."""
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
