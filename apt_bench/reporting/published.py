"""The paper's figures, as `results/published/*.csv` gives them. Unknown stays unknown."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from apt_bench.core.errors import UserError
from apt_bench.core.paths import data_dir

SOURCE = "arXiv 2606.12366"


@dataclass(frozen=True)
class PublishedRow:
    """One line of a CSV: text as it stands there, and numbers ("" = unknown)."""

    method: str
    text: dict[str, str]

    def number(self, column: str) -> float:
        """The value, nan where it is unknown."""
        word = self.text.get(column, "")
        return float(word) if word else math.nan


def published(name: str) -> list[PublishedRow]:
    """Rows of `NAME.csv`. Raises UserError where the file is not there."""
    path = data_dir("published") / Path(name).name
    if not path.is_file():
        raise UserError(f"No published figures {path.name} in {path.parent}.")
    with open(path, newline="", encoding="utf-8") as file:
        return [PublishedRow(row["method"], dict(row)) for row in csv.DictReader(file)]
