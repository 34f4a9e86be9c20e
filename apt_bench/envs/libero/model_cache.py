"""Keep the last few compiled models of an environment.

LIBERO compiles the same XML again for every task and every reset. Its 40 base tasks and LIBERO-PRO's 80 headline tasks
have only 21 different XML texts.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

CACHED_MODELS = 3  # each takes about 1 GB with its GL context

_MUTABLE = ("body_pos", "body_quat", "site_rgba")
"""The arrays of a model that LIBERO writes to: it places fixtures, and shows and hides sites."""


@dataclass
class CachedModel:
    """A compiled model with its data."""

    sim: Any  # robosuite's MjSim
    pristine: dict[str, np.ndarray]  # copies of the arrays of `_MUTABLE`, taken right after compiling
    renderer: Any = None  # owns a GL context; created when first needed

    def restore(self) -> None:
        """Undo every change to the model."""
        for name, value in self.pristine.items():
            getattr(self.sim.model._model, name)[:] = value

    def free(self) -> None:
        """Free the GL context now. The model is freed with its last reference."""
        if self.renderer is not None:
            self.renderer.free()
            self.renderer = None


class ModelCache:
    """The last few compiled models of one environment, by the SHA-1 of their XML."""

    def __init__(self, size: int = CACHED_MODELS):
        self.size = size
        self.entries: OrderedDict[str, CachedModel] = OrderedDict()
        self.last: CachedModel | None = None

    def from_xml(self, compile_xml: Callable[[str], Any], xml: str) -> Any:
        """robosuite's MjSim of this XML: the cached one, or a new one from `compile_xml`."""
        key = hashlib.sha1(xml.encode()).hexdigest()
        entry = self.entries.get(key)
        if entry is None:
            while len(self.entries) >= self.size:
                self.entries.popitem(last=False)[1].free()
                gc.collect()  # robosuite's objects refer to each other in cycles
            sim = compile_xml(xml)
            pristine = {name: np.array(getattr(sim.model._model, name)) for name in _MUTABLE}
            entry = self.entries[key] = CachedModel(sim, pristine)
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


@contextlib.contextmanager
def cached_compilation(cache: ModelCache) -> Iterator[None]:
    """Inside this context, robosuite takes its compiled models from this cache."""
    from robosuite.utils.binding_utils import MjSim

    original = MjSim.__dict__["from_xml_string"]
    compile_xml = MjSim.from_xml_string
    MjSim.from_xml_string = classmethod(lambda cls, xml: cache.from_xml(compile_xml, xml))
    try:
        yield
    finally:
        MjSim.from_xml_string = original
