"""Words instead of identifiers."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"_(\d+)(?![^_\W])")


def in_words(identifier: str) -> str:
    """An identifier of an object, task or outcome in words: `black_bowl_1` -> `black bowl (1)`."""
    return _NUMBER.sub(r" (\1)", identifier).replace("_", " ").strip()
