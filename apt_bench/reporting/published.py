"""Reads the paper's figures from `results/published/*.csv`. A value that the paper does not give stays unknown."""

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

PAPER_SUITE = "libero_pro"
"""The only suite that is the paper's own test; the others with published rows are open equivalents."""

WORDS = ("method", "mode", "task", "split")
"""Columns of text. Every other column holds numbers or empty cells."""


@dataclass(frozen=True)
class PublishedRow:
    """One line of a file: the method, and the text of every column ("" = unknown)."""

    method: str
    text: dict[str, str]

    def number(self, column: str) -> float:
        """The value of a column; nan where it is unknown."""
        word = self.text.get(column, "")
        return float(word) if word else math.nan


def is_published(name: str) -> bool:
    """Whether a file of this name ships with apt-bench."""
    return _path(name).is_file()


def published(name: str, needed: Sequence[str] = ("method",)) -> list[PublishedRow]:
    """The rows of a file that ships with apt-bench, see `read_published`."""
    return read_published(_path(name), needed)


def _path(name: str) -> Path:
    return data_dir("published") / Path(name).name


def read_published(path: Path, needed: Sequence[str] = ("method",)) -> list[PublishedRow]:
    """The rows of a file of published figures.

    Args:
        path: A CSV file in UTF-8. Rates are in percent, counts are whole numbers, an empty cell is an unknown value.
        needed: Columns that must exist.

    Raises:
        UserError: The file is not as described; the message names line and column.
    """
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
        raise UserError(f"{path} has column '{sorted(twice)[0]}' twice. Remove one.")
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
