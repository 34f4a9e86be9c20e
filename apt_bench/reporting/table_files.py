"""Writes a table as files: CSV (every number), Markdown, and LaTeX (booktabs) that fits a paper of two columns."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from apt_bench.core.text import csv_cell, one_line
from apt_bench.reporting.table import Column, Rate, Row, Table, Value, words


def write(table: Table, folder: Path) -> list[Path]:
    """Write `NAME.csv`, `NAME.md` and, for a table of a paper, `NAME.tex` into a folder.

    Args:
        table: The table.
        folder: Where to write; it is made where it does not exist.

    Returns:
        The paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{table.name}.{kind}" for kind in table.kinds]
    with open(paths[0], "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([csv_cell(cell) for cell in row] for row in csv_rows(table))
    paths[1].write_text(markdown(table), encoding="utf-8")
    if table.paper:
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
    mixed = table.mixed
    rows = [[*(["source"] if mixed else []), *header]]
    for row in table.rows:
        line: list[str] = [row.kind] if mixed else []
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
        values = [(row.values.get(c.key), c) for c in table.columns]
        lines.append([words(v) if isinstance(v, Rate) else md(c.words(v)) for v, c in values])
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
    "✓": r"\checkmark{}", "✗": r"$\times$",
    "·": r"\textperiodcentered{}", "<": r"\textless{}", ">": r"\textgreater{}", "π": r"$\pi$",
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


ONE, TWO = 238.0, 490.0
"""Width in points of one column and of the page, at most: a little less than in the styles of CVPR, IEEE and ICML."""

LINES = 52
"""Lines of a table on one page, at most. A longer table becomes several."""

SEPARATION = 6.0
"""Space between two columns in points (twice `tabcolsep`)."""

NARROW = 34.0
"""Least width in points of a column of text that is broken into lines."""


@dataclass(frozen=True)
class _Layout:
    """`size`: size of the type, with its height in points. `stacked`: intervals are below their values, and headings
    have one word a line."""

    environment: str
    width: float
    size: str
    points: float
    stacked: bool = False


_LAYOUTS = (
    _Layout("table", ONE, "small", 9),
    _Layout("table", ONE, "footnotesize", 8),
    _Layout("table*", TWO, "small", 9),
    _Layout("table*", TWO, "footnotesize", 8),
    _Layout("table*", TWO, "footnotesize", 8, stacked=True),
    _Layout("table*", TWO, "scriptsize", 7, stacked=True),
)


def latex(table: Table) -> str:
    """A `table` environment, or `table*` where one column of the paper is too narrow.

    It needs the packages `array`, `booktabs`, `graphicx` and `amssymb` (ticks).

    Columns of text are broken into lines where the table is still too wide. Intervals are in brackets.
    """
    for layout in _LAYOUTS:
        natural = [_natural(table, c, layout) for c in table.columns]
        if sum(natural) + SEPARATION * len(natural) <= layout.width:
            break
    widths = _fitted(table, natural, layout.width - SEPARATION * len(natural))
    parts = list(_pages(table, natural, widths, layout))
    notes = " ".join(tex(n) for n in table.notes)
    lines = [r"% needs \usepackage{array,booktabs,graphicx,amssymb}"]
    for number, rows in enumerate(parts):
        caption = f"{tex(table.title)}. {notes}" if number == 0 else f"{tex(table.title)} (continued)."
        label = _slug(table.name) + (f"-{number + 1}" if number else "")
        lines += [
            rf"\begin{{{layout.environment}}}[tp]", r"\centering", rf"\{layout.size}", r"\setlength{\tabcolsep}{3pt}",
            *_tabular(table, rows, natural, widths, layout),
            rf"\caption{{{caption}}}".replace(". }", ".}"), rf"\label{{tab:{label}}}",
            rf"\end{{{layout.environment}}}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _tabular(
    table: Table, rows: Sequence[Row], natural: Sequence[float], widths: Sequence[float], layout: _Layout
) -> list[str]:
    broken = [w < n for w, n in zip(widths, natural, strict=True)]
    kinds = {"left": "l", "right": "r", "center": "c"}
    align = "".join(
        rf">{{\raggedright\arraybackslash}}p{{{w:.0f}pt}}" if cut else kinds[c.align]
        for c, w, cut in zip(table.columns, widths, broken, strict=True)
    )
    lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
    if table.grouped:
        heads, rules, at = [], [], 1
        for group, span in table.groups:
            heads.append(rf"\multicolumn{{{span}}}{{c}}{{{tex(group)}}}" if group else "")
            rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}" if group else "")
            at += span
        lines += [" & ".join(heads) + r" \\", "".join(rules)]
    lines += [" & ".join(_heading(c, layout) for c in table.columns) + r" \\", r"\midrule"]
    before = rows[0].kind if rows else "plain"
    for row in rows:
        if row.kind != before:
            lines.append(r"\midrule")
        before = row.kind
        cells = (_tex(row.values.get(c.key), c, layout) for c in table.columns)
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if sum(widths) + SEPARATION * len(widths) > layout.width:
        lines = [r"\resizebox{\textwidth}{!}{%", *lines, "}"]
    return lines


def _heading(column: Column, layout: _Layout) -> str:
    if layout.stacked and " " in column.label:
        at = {"left": "l", "right": "r", "center": "c"}[column.align]
        return rf"\shortstack[{at}]{{" + r" \\ ".join(map(tex, column.label.split())) + "}"
    return tex(column.label)


def _tex(value: Value, column: Column, layout: _Layout) -> str:
    if not isinstance(value, Rate):
        return tex(column.words(value))
    interval = rf"{{\scriptsize [{tex(value.interval())}]}}" if value.interval() else ""
    if layout.stacked and interval:
        at = {"left": "l", "right": "r", "center": "c"}[column.align]
        return rf"\begin{{tabular}}[t]{{@{{}}{at}@{{}}}}{tex(value.text())} \\ {interval}\end{{tabular}}"
    return f"{tex(value.text())} {interval}".strip()


def _natural(table: Table, column: Column, layout: _Layout) -> float:
    """Width of a column in points, if no text in it is broken."""
    label = column.label.split() if layout.stacked else [column.label]
    found = [_width(word, layout.points) for word in label]
    for row in table.rows:
        value = row.values.get(column.key)
        if isinstance(value, Rate):
            parts = [_width(value.text(), layout.points)]
            parts += [_width(f" [{value.interval()}]", 7)] if value.interval() else []
            found.append(max(parts) if layout.stacked else sum(parts))
        else:
            found.append(_width(column.words(value), layout.points))
    return max(found, default=0.0)


def _width(text: str, points: float) -> float:
    """Width of a text in points, at least what TeX's own typeface needs."""
    return points * _ems(text)


@lru_cache(maxsize=2**16)
def _ems(text: str) -> float:
    return sum(_EM.get(c, 0.78 if c.isupper() else 0.53) for c in text)


_EM = {**dict.fromkeys("iljt.,:;|()[]!'’ fr-", 0.4), **dict.fromkeys("mwMW%@–†✓✗π×≥−", 0.93)}
"""Widths of characters that are not 0.53 or, for capitals, 0.78 times the size of the type."""


def _fitted(table: Table, natural: Sequence[float], room: float) -> list[float]:
    """Widths of the columns, where columns of text share the room that the others leave."""
    widths = list(natural)
    free = {i for i, c in enumerate(table.columns) if c.align == "left"}
    left = room - sum(w for i, w in enumerate(widths) if i not in free)
    while free and sum(widths[i] for i in free) > left:
        share = left / len(free)
        fitting = {i for i in free if natural[i] <= share}
        if not fitting:
            for i in free:
                widths[i] = max(NARROW, share)
            break
        free -= fitting
        left -= sum(natural[i] for i in fitting)
    return widths


def _pages(
    table: Table, natural: Sequence[float], widths: Sequence[float], layout: _Layout
) -> Iterator[list[Row]]:
    """The rows in parts that fit a page each."""
    part: list[Row] = []
    used = 0.0
    for row in table.rows:
        intervals = any(isinstance(v, Rate) and v.interval() for v in row.values.values())
        lines = 2.1 if layout.stacked and intervals else 1.0
        for column, wide, width in zip(table.columns, natural, widths, strict=True):
            if width < wide:
                text = column.words(row.values.get(column.key))
                lines = max(lines, math.ceil(1.25 * _width(text, layout.points) / width))
        if part and used + lines > LINES:
            yield part
            part, used = [], 0.0
        part.append(row)
        used += lines
    yield part


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())
