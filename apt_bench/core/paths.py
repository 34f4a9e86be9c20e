"""Where the package's own data lie: inside the wheel when installed, beside it in a checkout."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_CHECKOUT = {"suites": "suites", "baselines": "baselines", "published": "results/published"}


def data_dir(kind: str) -> Path:
    """Folder of `suites`, `baselines` or `published`."""
    packed = _PACKAGE / "data" / kind
    return packed if packed.is_dir() else _PACKAGE.parent / _CHECKOUT[kind]


def cache_dir() -> Path | None:
    """`$APT_BENCH_CACHE`, or `apt-bench` in the user's cache folder; it need not exist. None for a user without a home
    folder."""
    own = os.environ.get("APT_BENCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(own) if own else Path(base, "apt-bench")
    return path if path.is_absolute() or own else None
