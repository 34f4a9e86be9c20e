"""The paper's figures, as `results/published/*.csv` gives them. Unknown stays unknown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.files import read_text
from apt_bench.core.paths import data_dir

SOURCE = "arXiv 2606.12366"

WORDS = ("method", "mode", "task", "split")
"""Columns of text; what stands in every other column is a number, or nothing."""


@dataclass(frozen=True)
class PublishedRow:
    """One line of a CSV: text as it stands there, and numbers ("" = unknown)."""

    method: str
    text: dict[str, str]

    def number(self, column: str) -> float:
        """The value, nan where it is unknown."""
        word = self.text.get(column, "")
        return float(word) if word else math.nan


def published(name: str, needed: Sequence[str] = ("method",)) -> list[PublishedRow]:
    """Rows of the shipped `NAME.csv`, see `read_published`."""
    path = data_dir("published") / Path(name).name
    if not path.is_file():
        raise UserError(f"No published figures {path.name} in {path.parent}.")
    return read_published(path, needed)


def read_published(path: Path, needed: Sequence[str] = ("method",)) -> list[PublishedRow]:
    """Rows of a file of published figures. Raises UserError where it is no CSV file in UTF-8, where a column of
    `needed` is missing, and for a number that is none: rates are in %, counts are whole."""
    try:
        lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        rows = [(lines.line_num, row) for row in lines if any(row)]
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}.") from None
    head = [cell.strip() for cell in rows[0][1]] if rows else []
    for name in needed:
        if name not in head:
            raise UserError(f"{path} has no column '{name}'. {did_you_mean(name, head)}")
    if twice := {name for name in head if head.count(name) > 1}:
        raise UserError(f"{path} has column '{sorted(twice)[0]}' twice.")
    found = []
    for number, row in rows[1:]:
        where = f"{path}, line {number}"
        if len(row) != len(head):
            raise UserError(f"{where}: {len(row)} cells under {len(head)} headings.")
        text = dict(zip(head, map(str.strip, row), strict=True))
        for name, word in text.items():
            _check(f"{where}: '{name}'", name, word)
        if {"successes", "trials"} <= text.keys() and int(text["successes"]) > int(text["trials"]):
            raise UserError(f"{where}: more successes than trials.")
        found.append(PublishedRow(text["method"], text))
    return found


def _check(where: str, name: str, word: str) -> None:
    if name in WORDS:
        if not word:
            raise UserError(f"{where} is empty.")
    elif name in ("successes", "trials"):
        if not (word.isascii() and word.isdigit() and len(word) <= 6):
            raise UserError(f"{where} is '{word[:40]}'; it must be a whole number below a million.")
    elif word:
        try:
            known = 0 <= float(word) <= 100
        except ValueError:
            known = False
        if not known:
            raise UserError(f"{where} is '{word[:40]}'; it must be a number from 0 to 100, or empty.")
