"""Reads CSV files as spreadsheets save them, and writes CSV files without formulas."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.files import read_bytes, reason, try_remove
from apt_bench.core.text import csv_cell, csv_text

MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
"""Byte-order mark at the start of a file -> the encoding that it means."""

_SEPARATOR = re.compile(r"\s*sep=([^\r\n]?)[,;\t ]*(?:\r\n|\r|\n)", re.IGNORECASE)
"""A first line `sep=;`, which gives the character that separates cells."""


def read_rows(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file.

    Commas, semicolons or tabs separate the cells: the character of a first line `sep=;`, or the one in the headings.
    Empty rows and columns are left out.

    Args:
        path: The file: UTF-8, or UTF-16 with a byte-order mark.
        needed: Columns that must exist.

    Returns:
        For each row its number, as a spreadsheet shows it, and its stripped cells by lower-case heading.

    Raises:
        UserError: It is no such file, a column is missing, or a row has more cells than there are headings.
    """
    text = _decoded(path)
    said = _SEPARATOR.match(text)
    if said:
        text = text[said.end() :]
    heading = next((line for line in text.splitlines() if line.strip(" ,;\t")), "")
    separator = max(",;\t", key=heading.count)
    if said and said[1] and said[1] in heading:
        separator = said[1]
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}.") from None
    numbered = [(n, [csv_text(c.strip()).strip() for c in row]) for n, row in enumerate(rows, 1)]
    numbered = [(n, row) for n, row in numbered if any(row)]
    head = [cell.lower() for cell in numbered[0][1]] if numbered else []
    for name in needed:
        if name not in head:
            raise UserError(
                f"{path} has no column '{name}'. Its first line must name: {', '.join(needed)}."
                + (f" {did_you_mean(name, filter(None, head))}" if any(head) else "")
            )
    if twice := sorted({name for name in head if name and head.count(name) > 1}):
        raise UserError(f"{path} has two columns '{twice[0]}'. Remove one.")
    problems, found = [], []
    for number, row in numbered[1:]:
        extra = [
            cell for cell, name in zip(row, [*head, *[""] * len(row)], strict=False) if cell and not name
        ]
        if extra:
            counts = f"{_width(row)} cells under {_width(head)} headings"
            problems.append(f"row {number}: {counts}; '{extra[0]:.40}' has no heading")
        cells = [*row, *[""] * len(head)]
        found.append((number, {n: c for n, c in zip(head, cells, strict=False) if n}))
    refuse(path, problems)
    return found


def _width(row: Sequence[str]) -> int:
    """Number of cells up to the last one that is not empty."""
    return max((i for i, cell in enumerate(row, 1) if cell), default=0)


def _decoded(path: Path) -> str:
    content = read_bytes(path)
    mark = next((m for m in MARKS if content.startswith(m)), b"")
    try:
        text = content[len(mark) :].decode(MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}). In the spreadsheet, save it as "
            "'CSV UTF-8'."
        ) from None
    if "\0" in text:
        raise UserError(f"{path} is not a CSV file in UTF-8: it contains null bytes. Save it as 'CSV UTF-8'.")
    return text


def refuse(path: Path, problems: Sequence[str]) -> None:
    """Raise UserError with the first 20 problems, if there are any."""
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise UserError(f"{path}:\n  " + "\n  ".join(problems[:20]) + more)


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows to a new CSV file.

    Args:
        path: The file. An existing one is never replaced, because it may be filled in.
        rows: The rows; all have the columns of the first one.

    Raises:
        UserError: The file exists or cannot be written.
    """
    made = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", newline="", encoding="utf-8") as file:
            made = True
            writer = csv.writer(file)
            writer.writerow(rows[0])
            writer.writerows([csv_cell(row[name]) for name in rows[0]] for row in rows)
    except (OSError, ValueError) as error:
        if made:
            try_remove(path)
        elif isinstance(error, FileExistsError) and os.path.lexists(
            path
        ):  # else a folder of the path is a file
            raise UserError(f"{path} already exists and may be filled in. Give another name.") from None
        raise UserError(f"Cannot write {path}: {reason(error)}.") from None
