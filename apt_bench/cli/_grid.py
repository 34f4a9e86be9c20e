"""Tables for a terminal: cells wrap between words, and nothing is cut. Elsewhere a report's table is Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from apt_bench.core.text import literal, plain

if TYPE_CHECKING:
    from apt_bench.reporting.table import Table as ReportTable

GAP = 2
"""Spaces between two columns."""

LONG = 20
"""A longer word may be continued in the next line."""


class Grid:
    """A table as wide as the terminal at most.

    A cell that does not fit is wrapped between words. Only a long word, such as a path, is continued in the next line.

    Args:
        headings: One for each column.
        left: Number of first columns that are aligned to the left; None = all.
    """

    def __init__(self, *headings: str, left: int | None = None) -> None:
        self.headings = headings
        self._left = len(headings) if left is None else left
        self._rows: list[list[str]] = []

    def add(self, *cells: object) -> None:
        """Add a row; None is an empty cell."""
        self._rows.append([plain("" if cell is None else cell) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """See rich."""
        table = Table(
            box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0), collapse_padding=True
        )
        columns = list(zip(self.headings, *self._padded(), strict=True))
        free = options.max_width - GAP * (len(columns) - 1)
        for number, (cells, width) in enumerate(zip(columns, _widths(columns, free), strict=True)):
            justify: Literal["left", "right"] = "left" if number < self._left else "right"
            table.add_column(literal(cells[0]), justify=justify, width=width, overflow="fold")
        for row in self._padded():
            table.add_row(*map(literal, row))
        yield table

    def _padded(self) -> list[list[str]]:
        """The rows; a row that lacks its last cells gets empty ones."""
        return [[*row, *[""] * (len(self.headings) - len(row))] for row in self._rows]


def _widths(columns: Sequence[Sequence[str]], free: int) -> list[int]:
    """The widths of the columns: as their cells need, or else the widest are reduced, first to their longest words.
    Headings wrap before cells do."""
    widths = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
    if sum(widths) > free:
        widths = [
            max(
                *(cell_len(word) for word in heading.split()),
                *(cell_len(c) for cell in cells for c in cell.split("\n")),
                1,
            )
            for heading, *cells in columns
        ]
    words = [
        min(LONG, max((cell_len(w) for cell in column for w in cell.split()), default=1))
        for column in columns
    ]
    for least in (words, [1] * len(columns)):
        while sum(widths) > free and (wide := [i for i, w in enumerate(widths) if w > least[i]]):
            widths[max(wide, key=lambda i: widths[i])] -= 1
    return widths


def print_table(table: ReportTable, console: Console) -> None:
    """Print a table of a report with its title and notes: as a `Grid` on a terminal, as Markdown elsewhere."""
    from apt_bench.reporting.table_files import markdown

    if not console.file.isatty():
        console.print(markdown(table), markup=False, soft_wrap=True)
        return
    columns = table.columns
    left = next((i for i, c in enumerate(columns) if c.align != "left"), len(columns))
    grid = Grid(*(f"{c.group} {c.label}".strip() for c in columns), left=left)
    for row in table.rows:
        grid.add(*(c.words(row.values.get(c.key)) for c in columns))
    console.print(literal(table.title, "bold"), soft_wrap=True)
    console.print(grid)
    for note in table.notes:
        console.print(literal(note), soft_wrap=True)
    console.print()
