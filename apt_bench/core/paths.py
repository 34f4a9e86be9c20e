"""Folders of the package's own data: inside the package when installed, beside it in a checkout."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_CHECKOUT = {"suites": "suites", "baselines": "baselines", "published": "results/published"}


def data_dir(kind: str) -> Path:
    """The folder of `suites`, `baselines` or `published`."""
    packed = _PACKAGE / "data" / kind
    return packed if packed.is_dir() else _PACKAGE.parent / _CHECKOUT[kind]


def weights_dir(name: str) -> Path:
    """The folder of weights that ship with the package: `mini_policy` or `mini_vlm`."""
    return _PACKAGE / "models" / "weights" / name


def cache_dir() -> Path | None:
    """`$APT_BENCH_CACHE`, or `apt-bench` in the user's cache folder. It may not exist yet.

    Returns:
        The folder, or None for a user without a home folder."""
    if own := os.environ.get("APT_BENCH_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME", "")
    path = Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "apt-bench")
    return path if path.is_absolute() else None
