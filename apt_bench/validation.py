"""What `apt-bench validate` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "error"]


@dataclass(frozen=True)
class Finding:
    """One check's result. `error`: scores would not mean what they say; `warn`: a known defect or an oddity."""

    level: Level
    kind: str
    message: str
    cell: str = ""  # "" = the whole suite
    task: str | None = None
    init: int | None = None
