"""Where the package's own data lie: inside the wheel when installed, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_CHECKOUT = {"suites": "suites", "baselines": "baselines", "published": "results/published"}


def data_dir(kind: str) -> Path:
    """Folder of `suites`, `baselines` or `published`."""
    packed = _PACKAGE / "data" / kind
    return packed if packed.is_dir() else _PACKAGE.parent / _CHECKOUT[kind]
