"""Import robosuite and LIBERO without their side effects, and keep compiled models.

Importing robosuite as it is opens a log file in the system's temporary folder, prints three warnings, and sets
`MUJOCO_GL`; LIBERO prints to stdout. `import_libero` avoids all of that. LIBERO compiles the same XML again for every
task and every reset; there are only 21 different ones among its 40 base tasks and LIBERO-PRO's 80 headline tasks, so
`SimCache` keeps the last few.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.util
import io
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.envs.mj import no_gl

MACROS = {"SIMULATION_TIMESTEP": 0.002, "USING_INSTANCE_RANDOMIZATION": False}
"""What robosuite's macros must say; a user's `macros_private.py` may say something else."""

CACHED_MODELS = 3  # each holds about 1 GB with its GL context


@contextlib.contextmanager
def _cv2_or_nothing() -> Iterator[None]:
    """robosuite imports OpenCV for its window, which nobody opens here. OpenCV's wheel needs libGL and GLib, which a
    headless machine may lack: then an empty module stands in while robosuite is imported."""
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
    """The module `libero.libero.envs`, imported without a log file, a print, or a GL library.

    The engine makes its own GL context (see `camera.py`), so MuJoCo and robosuite are imported with theirs disabled:
    a run without cameras works on a machine without any GL.

    Raises UserError where they are missing, and where other code of this process has imported them with settings that
    are not the pinned ones.
    """
    if "libero.libero.envs" not in sys.modules:
        if "robosuite" not in sys.modules:
            spec = importlib.util.find_spec("robosuite")
            if spec is None or spec.origin is None:
                raise UserError("robosuite is not installed. Install apt-bench with its dependencies.")
            # robosuite reads its macros once, while it is imported: they must be set before.
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
        with no_gl(), _cv2_or_nothing(), quiet():
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
    """LIBERO's `get_libero_path`, without the configuration file of the user, which may name other assets."""
    return sys.modules["libero.libero"].get_default_path_dict()[key]


def _check_settings() -> None:
    """What robosuite and LIBERO read while they are imported, where other code has imported them before."""
    macros = importlib.import_module("robosuite.macros")
    changed = [n for n, value in MACROS.items() if getattr(macros, n) != value]
    if changed:
        raise UserError(
            f"robosuite's macro {changed[0]} is not {MACROS[changed[0]]}, and scores depend on it."
        )
    assets = importlib.import_module("libero.libero.envs.objects.hope_objects").absolute_path
    libero = importlib.import_module("libero.libero")
    for found in (assets, libero.get_libero_path("assets")):
        if Path(found) != Path(packaged_path("assets")):
            raise UserError(
                f"LIBERO was imported before with the assets in {found}, which its configuration file names, and "
                "scores depend on them. Import apt_bench first, or remove that file."
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """LIBERO prints while it works."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """LIBERO draws from numpy's global generator: give it a stream of its own and put the old one back."""
    old = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(old)


@dataclass
class CachedSim:
    """A compiled model with its data, and what LIBERO's resets change in the model.

    `pristine` holds copies taken right after compiling; `context` is the GL context, made when first needed.
    """

    key: str
    sim: Any  # robosuite's MjSim
    pristine: dict[str, np.ndarray]
    context: Any = None
    user: object = None  # whose episode is in the model and the data now

    def restore(self) -> None:
        """Undo every change to the model."""
        for name, value in self.pristine.items():
            getattr(self.sim.model._model, name)[:] = value

    def free(self) -> None:
        """Free the GL context now; the model goes with the last reference."""
        if self.context is not None:
            self.context.free()
            self.context = None


_MUTABLE = ("body_pos", "body_quat", "site_rgba")
"""What LIBERO writes into a model: fixtures are placed, sites are shown and hidden."""


class SimCache:
    """The last few compiled models, by the SHA-1 of their XML."""

    def __init__(self, size: int = CACHED_MODELS):
        self.size = size
        self.entries: OrderedDict[str, CachedSim] = OrderedDict()
        self.last: CachedSim | None = None

    def from_xml(self, compile_xml: Callable[[str], Any], xml: str) -> Any:
        """robosuite's MjSim of this XML: the cached one, or a new one from `compile_xml`."""
        key = hashlib.sha1(xml.encode()).hexdigest()
        entry = self.entries.get(key)
        if entry is None:
            while len(self.entries) >= self.size:
                self.entries.popitem(last=False)[1].free()
                gc.collect()  # robosuite's objects refer to each other in circles
            sim = compile_xml(xml)
            pristine = {name: np.array(getattr(sim.model._model, name)) for name in _MUTABLE}
            entry = self.entries[key] = CachedSim(key, sim, pristine)
        self.entries.move_to_end(key)
        entry.restore()
        self.last = entry
        return entry.sim

    def clear(self) -> None:
        """Free everything."""
        while self.entries:
            self.entries.popitem()[1].free()
        self.last = None
        gc.collect()


CACHE = SimCache()


@contextlib.contextmanager
def cached_compilation() -> Iterator[SimCache]:
    """Inside, robosuite takes its compiled models from `CACHE`."""
    from robosuite.utils.binding_utils import MjSim

    original = MjSim.__dict__["from_xml_string"]
    compile_xml = MjSim.from_xml_string
    MjSim.from_xml_string = classmethod(lambda cls, xml: CACHE.from_xml(compile_xml, xml))
    try:
        yield CACHE
    finally:
        MjSim.from_xml_string = original
