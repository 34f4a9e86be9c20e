"""Converts arguments of the public functions to the types that the rest of the package uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line
from apt_bench.suites import Suite, register_suite


def suite_name(suite: str | os.PathLike[str] | Suite) -> str:
    """A suite's name or path as text; a Suite is registered first."""
    return register_suite(suite).name if isinstance(suite, Suite) else str(path_of(suite, "suite"))


def path_of(value: Any, name: str) -> Path:
    """A text or path as a path. Raises UserError, naming the argument, for anything else."""
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name} is {one_line(repr(value), 100)}; it must be a text or a path.")
    return Path(value)


def several(words: Any) -> tuple[str, ...]:
    """One value or several, as a tuple of texts."""
    return tuple(map(str, [words] if isinstance(words, str | int) else words))
