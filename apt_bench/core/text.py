"""Text from outside (files, policies, servers, users) made safe where it is shown or becomes a name.

Everything that apt-bench prints goes through `plain_console`, which reads no markup and lets no terminal escape
through.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import IO, Any

from rich.console import Console
from rich.text import Text

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A cell that begins so is a formula to a spreadsheet; the last four are the first four in full width."""

NAME_LENGTH = 100
"""Characters of one file name, at most: every file system takes so many."""


def plain(text: object, keep: str = "\n") -> str:
    """The text with everything that steers a terminal, reorders a line or cannot be encoded written out as an escape.

    Control characters but those in `keep`, bidirectional overrides, and halves of surrogate pairs: `\\x1b` for ESC.
    """
    text = str(text)
    if text.isprintable():  # most are, and this is a hundred times faster
        return text
    return "".join(c if c in keep or not _steers(c) else _escaped(c) for c in text)


def one_line(text: object, most: int = 2000) -> str:
    """`plain` in one line of at most `most` characters, the middle left out where it is longer."""
    text = str(text)
    if len(text) > 2 * most:  # before every character of it is looked at
        text = text[:most] + text[-most:]
    line = plain(" ".join(text.split("\n")), keep="")
    half = most // 2 - 3
    return line if len(line) <= most else f"{line[:half]} ... {line[-half:]}"


def csv_cell(value: Any) -> Any:
    """A value for a CSV file that a spreadsheet will not run: text that looks like a formula gets a leading quote.

    Numbers stay as they are, also where they come as text. `csv_text` is the inverse."""
    if not isinstance(value, str):
        return value
    value = plain(value)
    return f"'{value}" if value.lstrip("'").startswith(FORMULA) and not _is_number(value) else value


def csv_text(cell: str) -> str:
    """The text that `csv_cell` wrote as this cell."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def file_name(text: str) -> str:
    """One path component made from the text: letters, digits and `._@+=-` stay, the rest becomes `_`.

    Never empty, never `.` or `..`, never hidden, at most `NAME_LENGTH` characters."""
    name = re.sub(r"[^\w.@+=-]", "_", plain(text)).lstrip(".")
    return name[:NAME_LENGTH] or "_"


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _BIDI


_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def literal(text: object, style: str = "") -> Text:
    """A renderable that is only this text on any console: no markup, no escapes, in this style."""
    return Text(plain(text), style=style)


class PlainConsole(Console):
    """A console to which a text is only a text: no markup, no emoji names, no escapes from outside."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, of the text made plain."""
        return super().render_str(plain(text), **options)

    def on_broken_pipe(self) -> None:
        """Rich would end the program with exit code 1, which is a verdict's."""
        raise BrokenPipeError


def plain_console(file: IO[str] | None = None) -> PlainConsole:
    """Where verbs print; without `file`, stdout. Into a pipe or a file a line is a row: never wrapped to a terminal's
    width."""
    stream = file or sys.stdout
    return PlainConsole(file=file, width=None if stream.isatty() else 1000)


LINE, LINES = 1200, 60
"""Characters of a line of a message, and lines, at most: a name in it may be as long as a file."""


def message(text: object) -> str:
    """A message for people, lists of lines included: what it repeats of somebody's text is plain and not endless."""
    lines = str(text).split("\n", LINES + 1)
    more = [f"  and more, {LINES} lines are shown"] if len(lines) > LINES else []
    return "\n".join([*(one_line(line, LINE) for line in lines[:LINES]), *more])


def say(text: object) -> None:
    """A message on stderr in apt-bench's name."""
    print(f"apt-bench: {message(text)}", file=sys.stderr)
