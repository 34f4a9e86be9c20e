"""The `Table` type, and a table in HTML. `table_files` writes tables as files.

The text in a table may come from anyone's files. Each format has one function that escapes it: `core.text.csv_cell`,
`table_files.md`, `table_files.tex` and `markup`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from apt_bench.analysis.stats import Estimate, wilson
from apt_bench.core.text import one_line
from apt_bench.core.wording import in_words

NONE = "–"
"""Printed where there is no value: the cell was not run, or the value is not reported or unknown."""

PUBLISHED = "†"
"""Marks values that are copied from a paper and were not measured here."""


@dataclass(frozen=True)
class Rate:
    """A success rate, or a difference of two (`signed`), as a fraction with its 95% interval; nan = unknown.

    `k` of `n`: the counts, where there are any. `mark`: a footnote sign after the value. `counts`: print `k/n` instead
    of percent.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    k: int | None = None
    n: int | None = None
    mark: str = ""
    signed: bool = False
    counts: bool = False

    @staticmethod
    def of(estimate: Estimate, **rest: object) -> Rate:
        """From an estimate and its interval."""
        return Rate(*estimate, **rest)  # type: ignore[arg-type]

    @staticmethod
    def counted(k: int, n: int, mark: str = "", counts: bool = False) -> Rate:
        """k of n, with Wilson's 95% interval; unknown where n is 0."""
        return Rate(k / n, *wilson(k, n), k=k, n=n, mark=mark, counts=counts) if n else Rate(math.nan)

    @staticmethod
    def share(flags: pd.Series) -> Rate:
        """The share of true flags among those that are known, with Wilson's 95% interval."""
        known = flags.dropna().astype(bool)
        return Rate.counted(int(known.sum()), len(known))

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    def text(self, minus: str = "−") -> str:
        """The value in percent (without the sign %), or successes/trials."""
        if not self.known:
            return NONE
        if self.counts and self.k is not None:
            return f"{self.k}/{self.n}{self.mark}"
        return percent(self.value, self.signed, minus) + self.mark

    def interval(self, minus: str = "−") -> str:
        """The interval in percent as `57–66`; "" where there is none."""
        if not self.known or math.isnan(self.low):
            return ""
        dash = " to " if self.signed else "–"
        return dash.join(percent(x, self.signed, minus) for x in (self.low, self.high))


def percent(fraction: float, signed: bool = False, minus: str = "−") -> str:
    """A fraction in percent without decimals; a difference (`signed`) with its sign, and one decimal below 10 points.

    Only 0 and 1 become `0` and `100`: values near the ends get one decimal.
    """
    value = round(100 * fraction, 9)  # a mean of ones may be 0.9999999999999999
    if not signed:
        return f"{value:.0f}" if value in (0, 100) or 0.95 <= value < 99.05 else f"{value:.1f}"
    text = f"{abs(value):.1f}" if abs(value) < 9.95 else f"{abs(value):.0f}"
    return text if float(text) == 0 else (minus if value < 0 else "+") + text


def pvalue(p: float) -> str:
    """A p-value with three digits; `<0.001` instead of 0."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


Value = Rate | str | float | int | None


@dataclass(frozen=True)
class Column:
    """A column.

    `group`: a heading that is printed once above adjacent columns of the same group. `identifiers`: its texts are names
    of objects, tasks or outcomes; people get them in words, and the CSV file as they are.
    """

    key: str
    label: str
    group: str = ""
    align: Literal["left", "right", "center"] = "center"
    identifiers: bool = False

    def words(self, value: Value) -> str:
        """A value as one line of text, with its interval in brackets."""
        return in_words(words(value)) if self.identifiers and isinstance(value, str) else words(value)


def left(key: str, label: str, identifiers: bool = False) -> Column:
    """A column of text."""
    return Column(key, label, align="left", identifiers=identifiers)


def right(key: str, label: str, group: str = "") -> Column:
    """A column of numbers."""
    return Column(key, label, group, "right")


NUMBERS = "#: the task's number in its cell, as in apt-bench ls tasks and run --tasks."
"""Note of a table whose column # has numbers of tasks."""

RUN, CELL, TASK = left("run", "Run"), left("cell", "Cell"), left("task", "Task", identifiers=True)


def own_key(name: str, *taken: str) -> str:
    """Key of a column that a file names: different from the table's own columns `taken` and from every other name."""
    return f"{name} " if name.rstrip(" ") in taken else name


@dataclass(frozen=True)
class Row:
    """A row: column key -> value. Rows of another `kind` are separated by a line; published rows are marked.

    `link`: address to which the first cell links on a page.
    """

    values: Mapping[str, Value]
    kind: Literal["measured", "published", "plain"] = "plain"
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    `name`: its files' name. `notes`: sentences below it. `heat`: colour the rates by their value. `paper`: it may be
    part of a paper, so it is also written as LaTeX. `about`: what the page says above it.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=tuple)
    heat: bool = False
    paper: bool = True
    about: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Endings of the table's files."""
        return ("csv", "md", "tex") if self.paper else ("csv", "md")

    def filled(self, column: Column) -> bool:
        """Whether a row has a value in the column."""
        values = (row.values.get(column.key) for row in self.rows)
        return any(v.known if isinstance(v, Rate) else v not in (None, "") for v in values)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Header groups, each with the number of columns that it spans."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and column.group and found[-1][0] == column.group:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found

    @property
    def grouped(self) -> bool:
        """Whether the table has a second header line."""
        return any(g for g, _ in self.groups)

    @property
    def mixed(self) -> bool:
        """Whether the table has published rows."""
        return any(r.kind == "published" for r in self.rows)


def words(value: Value) -> str:
    """A value as one line of text, with its interval in brackets."""
    if value is None:
        return NONE
    if isinstance(value, Rate):
        interval = value.interval()
        return value.text() + (f" [{interval}]" if interval else "")
    if isinstance(value, float):
        return NONE if math.isnan(value) else f"{value:.3g}"
    return one_line(value)


def markup(text: str) -> str:
    """Text escaped for HTML, inside and outside of quotes."""
    return html.escape(one_line(text))


LONG, SENTENCE = 14, 20
"""Labels and texts with more characters get a wider column on the page, so that they need few lines."""


def html_table(table: Table) -> str:
    """A `<table>`, with two header lines where columns are grouped. Each rate has its interval and its counts."""
    out = [f'<table class="data{" heat" if table.heat else ""}">', "<thead>"]
    if table.grouped:
        spans = (
            f'<th colspan="{span}" scope="colgroup"{" class=group" if g else ""}>{markup(g)}</th>'
            for g, span in table.groups
        )
        out.append("<tr>" + "".join(spans) + "</tr>")
    heads = (
        f'<th scope="col" class="{c.align}{" long" if len(c.label) > LONG else ""}">{markup(c.label)}</th>'
        for c in table.columns
    )
    out.append("<tr>" + "".join(heads) + "</tr></thead><tbody>")
    before = None
    for row in table.rows:
        edge = " edge" if before not in (None, row.kind) else ""
        before = row.kind
        cells = "".join(
            _html(row.values.get(c.key), c, table.heat, row.link if i == 0 else "")
            for i, c in enumerate(table.columns)
        )
        out.append(f'<tr class="{row.kind}{edge}">{cells}</tr>')
    return "\n".join([*out, "</tbody></table>"])


def _html(value: Value, column: Column, heat: bool, link: str) -> str:
    if not isinstance(value, Rate):
        text = markup(column.words(value))
        text = f'<a href="{markup(link)}">{text}</a>' if link else text
        wide = " long" if column.align == "left" and len(text) > SENTENCE else ""
        return f'<td class="{column.align}{wide}">{text}</td>'
    coloured = heat and value.known and not value.signed
    style = f' style="--v:{100 * value.value:.0f}%"' if coloured else ""
    small = [value.interval(), f"{value.k}/{value.n}" if value.n is not None and not value.counts else ""]
    below = "".join(f"<small>{markup(text)}</small>" for text in small if text)
    return f'<td class="{column.align}"{style}>{markup(value.text())}{below}</td>'
