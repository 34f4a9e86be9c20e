"""Import robosuite and LIBERO without their side effects.

A plain import of robosuite opens a log file in the system's temporary folder, prints three warnings and sets
`MUJOCO_GL`. A plain import of LIBERO prints to stdout. `import_libero` avoids all of these.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.envs.mujoco_no_gl import no_gl

MACROS = {"SIMULATION_TIMESTEP": 0.002, "USING_INSTANCE_RANDOMIZATION": False}
"""Required values of robosuite's macros. A user's `macros_private.py` may set other values."""


@contextlib.contextmanager
def _cv2_or_empty_module() -> Iterator[None]:
    """Let robosuite be imported where OpenCV cannot be.

    robosuite imports OpenCV for its window, which apt-bench never opens. OpenCV's wheel needs libGL and GLib, which a
    headless machine may lack. An empty module then replaces `cv2` while robosuite is imported."""
    missing = False
    try:
        importlib.import_module("cv2")
    except ImportError:
        missing = True
        sys.modules["cv2"] = types.ModuleType("cv2")
    try:
        yield
    finally:
        if missing:
            del sys.modules["cv2"]


def import_libero() -> Any:
    """Import `libero.libero.envs` without a log file, without prints and without a GL library.

    apt-bench creates its own GL context (see `camera.py`). MuJoCo and robosuite are therefore imported with theirs
    disabled, so that a run without cameras needs no GL library.

    Returns:
        The module `libero.libero.envs`.

    Raises:
        UserError: A package is missing, or other code in this process has imported robosuite or LIBERO with other
            settings than the pinned ones.
    """
    if "libero.libero.envs" not in sys.modules:
        if "robosuite" not in sys.modules:
            spec = importlib.util.find_spec("robosuite")
            if spec is None or spec.origin is None:
                raise UserError("robosuite is not installed. Install apt-bench with its dependencies.")
            # robosuite reads its macros once, at import. They must be set before.
            sys.modules["robosuite.macros_private"] = types.ModuleType("robosuite.macros_private")
            path = Path(spec.origin).with_name("macros.py")
            macros_spec = importlib.util.spec_from_file_location("robosuite.macros", path)
            assert macros_spec is not None
            assert macros_spec.loader is not None
            macros: Any = importlib.util.module_from_spec(macros_spec)
            macros_spec.loader.exec_module(macros)
            macros.FILE_LOGGING_LEVEL = None
            macros.MUJOCO_GPU_RENDERING = False
            sys.modules["robosuite.macros"] = macros
        with no_gl(), _cv2_or_empty_module(), quiet():
            try:
                importlib.import_module("robosuite")
                importlib.import_module("libero.libero").get_libero_path = packaged_path  # type: ignore[attr-defined]
                importlib.import_module("libero.libero.envs")
            except ImportError as error:
                raise UserError(
                    f"Cannot import LIBERO: {error}. Install apt-bench with its dependencies."
                ) from None
    _check_settings()
    return sys.modules["libero.libero.envs"]


def packaged_path(key: str) -> Any:
    """LIBERO's `get_libero_path`, but without the user's configuration file, which may name other assets."""
    return sys.modules["libero.libero"].get_default_path_dict()[key]


def _check_settings() -> None:
    """Check what robosuite and LIBERO read at import, as other code may have imported them before."""
    macros = importlib.import_module("robosuite.macros")
    changed = [n for n, value in MACROS.items() if getattr(macros, n) != value]
    if changed:
        raise UserError(
            f"robosuite's macro {changed[0]} is not {MACROS[changed[0]]}, and scores depend on it. Import apt_bench "
            "before robosuite, or remove the macro from macros_private.py."
        )
    assets = importlib.import_module("libero.libero.envs.objects.hope_objects").absolute_path
    libero = importlib.import_module("libero.libero")
    for found in (assets, libero.get_libero_path("assets")):
        if Path(found) != Path(packaged_path("assets")):
            raise UserError(
                f"LIBERO was already imported with the assets in {found}, which its configuration file names. "
                "Scores depend on the assets. Import apt_bench first, or remove that configuration file."
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what LIBERO prints to stdout."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, from which LIBERO draws, and restore its old state afterwards."""
    old = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(old)
