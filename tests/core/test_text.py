"""Text from outside has no effect but its characters, on a terminal, in a spreadsheet and in a file name."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from apt_bench.core.text import (
    LINE,
    LINES,
    csv_cell,
    csv_text,
    literal,
    message,
    one_line,
    plain,
    plain_console,
)

texts = st.text(st.characters())


@given(texts)
def test_plain_text_can_be_encoded_and_steers_no_terminal(text):
    shown = plain(text)
    shown.encode()
    assert not {c for c in shown if c != "\n" and unicodedata.category(c) in ("Cc", "Cs")}
    assert plain(shown) == shown
    assert "\n" not in one_line(text)
    assert len(one_line(text * 50, 100)) <= 100


@pytest.mark.parametrize(
    "text", ["cannot open [/dev/dri/renderD128]", "[red]x[/red]", ":smile:", "[link=a]b", "\\[x"]
)
@pytest.mark.parametrize("terminal", [True, False])
def test_brackets_are_no_markup(text, terminal):
    file = io.StringIO()
    console = plain_console(file)
    console._force_terminal = terminal
    console.print(text)
    table = Table("heading [/x]", title=text, box=None)
    table.add_row(text)
    console.print(table)
    Console(file=file, width=200).print(literal(text, "yellow"))  # on anybody's console
    assert file.getvalue().count(text) == 4
    assert "heading [/x]" in file.getvalue()


def test_escapes_are_shown_not_obeyed():
    file = io.StringIO()
    plain_console(file).print("\x1b[2J\x1b]0;title\x07 \u202egnp.exe \ud800")
    Console(file=file, width=200).print(literal("\x1b[2J"))
    assert "\x1b" not in file.getvalue()
    assert "\\x1b[2J" in file.getvalue()


@given(texts)
def test_a_csv_cell_is_no_formula_and_reads_back(text):
    cell = csv_cell(text)
    if not cell.startswith("'"):
        try:
            float(cell)
        except ValueError:
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert csv_text(cell) == plain(text)


def test_numbers_stay_numbers_in_csv():
    assert [csv_cell(v) for v in (1, -2.5, None, "-1", "-1e3")] == [1, -2.5, None, "-1", "-1e3"]
    assert csv_cell("=1+1") == "'=1+1"


def test_a_message_repeats_no_endless_word_and_keeps_its_lines():
    shown = message(f"No suite '{'x' * 5000}'. Did you mean 'y'?")
    assert len(shown) <= LINE
    assert shown.startswith("No suite 'xxx")
    assert shown.endswith("Did you mean 'y'?")
    assert message("sheet.csv:\n  row 2: a\n  row 3: \x1b") == "sheet.csv:\n  row 2: a\n  row 3: \\x1b"
    assert len(message("problem\n" * 10**6).splitlines()) == LINES + 1
