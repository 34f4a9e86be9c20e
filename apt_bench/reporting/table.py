"""The `Table` type, and how a table is written: CSV (every number), Markdown, LaTeX (booktabs) and HTML.

The text in a table may come from anyone's files. Each format has one function that escapes it: `core.text.csv_cell`,
`md`, `tex` and `markup`.
"""

from __future__ import annotations

import csv
import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from apt_bench.analysis.stats import Estimate, wilson
from apt_bench.core.text import csv_cell, one_line

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
    """A column. `group`: a heading that is printed once above adjacent columns of the same group."""

    key: str
    label: str
    group: str = ""
    align: Literal["left", "right", "center"] = "center"


def left(key: str, label: str) -> Column:
    """A column of text."""
    return Column(key, label, align="left")


def right(key: str, label: str, group: str = "") -> Column:
    """A column of numbers."""
    return Column(key, label, group, "right")


RUN, CELL, TASK = left("run", "Run"), left("cell", "Cell"), left("task", "Task")


def own_key(name: str, *taken: str) -> str:
    """Key of a column that a file names: different from the table's own columns `taken` and from every other name."""
    return f"{name} " if name.rstrip(" ") in taken else name


@dataclass(frozen=True)
class Row:
    """A row: column key -> value. Rows of another `kind` are separated by a line; published rows are marked."""

    values: Mapping[str, Value]
    kind: Literal["measured", "published", "plain"] = "plain"


@dataclass(frozen=True)
class Table:
    """A table. `name`: its files' name. `notes`: sentences below it. `heat`: colour the rates by their value."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=tuple)
    heat: bool = False

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


def write(table: Table, folder: Path) -> list[Path]:
    """Write `NAME.csv`, `NAME.md` and `NAME.tex` into a folder.

    Args:
        table: The table.
        folder: Where to write; it is made where it does not exist.

    Returns:
        The three paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{table.name}.{kind}" for kind in ("csv", "md", "tex")]
    with open(paths[0], "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([csv_cell(cell) for cell in row] for row in csv_rows(table))
    paths[1].write_text(markdown(table), encoding="utf-8")
    paths[2].write_text(latex(table), encoding="utf-8")
    return paths


def csv_rows(table: Table) -> list[list[str]]:
    """Header and rows of the CSV file.

    A rate becomes up to five columns: percent, `low`, `high`, `k` (successes) and `n`, as far as a value of the column
    has them.
    """
    parts: list[tuple[Column, list[str]]] = []
    for column in table.columns:
        rates = [r.values.get(column.key) for r in table.rows]
        found = [v for v in rates if isinstance(v, Rate)]
        names = ["value"] if found else [""]
        names += ["low", "high"] if any(not math.isnan(v.low) for v in found) else []
        names += ["k", "n"] if any(v.k is not None for v in found) else []
        parts.append((column, names))
    header = [c.key + (f"_{n}" if n not in ("", "value") else "") for c, names in parts for n in names]
    rows = [[*(["source"] if table.mixed else []), *header]]
    for row in table.rows:
        line: list[str] = [row.kind] if table.mixed else []
        for column, names in parts:
            value = row.values.get(column.key)
            line += [_csv(value, n) for n in names]
        rows.append(line)
    return rows


def _csv(value: Value, part: str) -> str:
    if isinstance(value, Rate):
        if part in ("k", "n"):
            number = getattr(value, part)
            return "" if number is None else str(number)
        fraction = getattr(value, part or "value")
        return "" if math.isnan(fraction) else f"{100 * fraction:.4g}"
    if part not in ("", "value") or value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)


_MARKS = re.compile(r"[\\`*\[\]~|$]|(?<![^\W_])_|_(?![^\W_])|!(?=\[)")
_LINKS = re.compile(r"\b(?:https?|ftp):(?=//)|\bwww(?=\.)|(?<!\w)@|@(?=\S*\.)", re.IGNORECASE)
_BLOCK = re.compile(r"#|>|[-+=]+(?=\s|$)|\d+[.)](?=\s|$)")


def md(text: str, block: bool = False) -> str:
    """Text escaped for one line of Markdown, GitHub's included: no markup, HTML or link, and no extra table cell.

    Args:
        text: Any text.
        block: The text begins a line, so it must not begin a heading or a list.
    """
    text = one_line(text).strip()
    begins = block and _BLOCK.match(text)
    text = _MARKS.sub(r"\\\g<0>", text).replace("&", "&amp;").replace("<", "&lt;")
    return ("&#8203;" if begins else "") + _LINKS.sub(r"\g<0>&#8203;", text)


def markdown(table: Table) -> str:
    """A pipe table with aligned columns, its title above and its notes below."""
    lines = [[md(f"{c.group} {c.label}".strip()) for c in table.columns]]
    for row in table.rows:
        values = [row.values.get(c.key) for c in table.columns]
        lines.append([words(v) if isinstance(v, Rate) else md(words(v)) for v in values])
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    aligns = [c.align for c in table.columns]
    fill = {"left": str.ljust, "right": str.rjust, "center": str.center}
    padded = [
        "| " + " | ".join(fill[a](w, n) for w, n, a in zip(line, widths, aligns, strict=True)) + " |"
        for line in lines
    ]
    ends = {"left": (":", "-"), "right": ("-", ":"), "center": (":", ":")}
    rule = "|".join(ends[a][0] + "-" * n + ends[a][1] for n, a in zip(widths, aligns, strict=True))
    notes = [f"{md(n, block=True)}  " for n in table.notes]
    head = [f"**{md(table.title)}**", "", padded[0], f"|{rule}|", *padded[1:]]
    return "\n".join([*head, *([""] if notes else []), *notes]) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "—": "---", "−": "$-$", "±": r"$\pm$",
    "†": r"$^\dagger$", "‡": r"$^\ddagger$", "→": r"$\to$", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$",
    "✓": r"\checkmark{}", "·": r"\textperiodcentered{}", "<": r"\textless{}", ">": r"\textgreater{}", "π": r"$\pi$",
    "Δ": r"$\Delta$", "’": "'", "“": "``", "”": "''", "…": r"\ldots{}", "[": "{[}", "]": "{]}", "`": "{`}",
}  # fmt: skip


def tex(text: str) -> str:
    """Text escaped for LaTeX. A character that plain LaTeX cannot set becomes a question mark.

    Brackets and a leading star are protected, since LaTeX would read them as arguments of the line break before them;
    two hyphens are separated, since they would become a dash.
    """
    line = one_line(text)
    found = "".join(
        "{}-" if c == before == "-" else _TEX.get(c, c if c.isascii() and c.isprintable() else "?")
        for before, c in zip(" " + line, line, strict=False)
    )
    return "{*}" + found[1:] if found.startswith("*") else found


def latex(table: Table) -> str:
    """A `table` environment for `booktabs` (and `amssymb`, for ticks). Intervals are in small type in brackets."""
    align = "".join({"left": "l", "right": "r", "center": "c"}[c.align] for c in table.columns)
    lines = [r"% needs \usepackage{booktabs,amssymb}", r"\begin{table}[t]", r"\centering", r"\small"]
    lines += [r"\setlength{\tabcolsep}{3pt}"] if len(table.columns) > 8 else []
    lines += [rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
    if table.grouped:
        heads, rules, at = [], [], 1
        for group, span in table.groups:
            heads.append(rf"\multicolumn{{{span}}}{{c}}{{{tex(group)}}}" if group else "")
            rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}" if group else "")
            at += span
        lines += [" & ".join(heads) + r" \\", "".join(rules)]
    lines += [" & ".join(tex(c.label) for c in table.columns) + r" \\", r"\midrule"]
    before = table.rows[0].kind if table.rows else "plain"
    for row in table.rows:
        if row.kind != before:
            lines.append(r"\midrule")
        before = row.kind
        lines.append(" & ".join(_tex(row.values.get(c.key)) for c in table.columns) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = " ".join(tex(n) for n in table.notes)
    lines += [
        rf"\caption{{{tex(table.title)}. {notes}}}".replace(". }", ".}"),
        rf"\label{{tab:{_slug(table.name)}}}",
    ]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _tex(value: Value) -> str:
    if isinstance(value, Rate):
        interval = value.interval()
        return tex(value.text()) + (rf" {{\scriptsize [{tex(interval)}]}}" if interval else "")
    return tex(words(value))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def markup(text: str) -> str:
    """Text escaped for HTML, inside and outside of quotes."""
    return html.escape(one_line(text))


def html_table(table: Table) -> str:
    """A `<table>`, with two header lines where columns are grouped."""
    out = [f'<table class="data{" heat" if table.heat else ""}">', "<thead>"]
    if table.grouped:
        spans = (
            f'<th colspan="{span}" scope="colgroup"{" class=group" if g else ""}>{markup(g)}</th>'
            for g, span in table.groups
        )
        out.append("<tr>" + "".join(spans) + "</tr>")
    out.append(
        "<tr>" + "".join(f'<th scope="col" class="{c.align}">{markup(c.label)}</th>' for c in table.columns)
    )
    out.append("</tr></thead><tbody>")
    before = None
    for row in table.rows:
        edge = " edge" if before not in (None, row.kind) else ""
        before = row.kind
        cells = "".join(_html(row.values.get(c.key), c, table.heat) for c in table.columns)
        out.append(f'<tr class="{row.kind}{edge}">{cells}</tr>')
    return "\n".join([*out, "</tbody></table>"])


def _html(value: Value, column: Column, heat: bool) -> str:
    if not isinstance(value, Rate):
        return f'<td class="{column.align}">{markup(words(value))}</td>'
    interval, style, title = value.interval(), "", ""
    if value.n is not None:
        title = f' title="{value.k} of {value.n}"'
    if heat and value.known and not value.signed:
        style = f' style="--v:{100 * value.value:.0f}%"'
    small = f"<small>{markup(interval)}</small>" if interval else ""
    return f'<td class="{column.align}"{title}{style}>{markup(value.text())}{small}</td>'
