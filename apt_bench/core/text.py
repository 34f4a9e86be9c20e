"""Make text from outside (files, policies, servers, users) safe to print and to use in file names.

Everything that apt-bench prints goes through `plain_console`, which interprets no markup and passes on no terminal
escapes.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import unicodedata
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from apt_bench.core.status import hide, may_animate

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A spreadsheet treats a cell that starts with one of these as a formula. The last four are full-width forms."""

NAME_LENGTH = 100
"""Maximum number of characters of a file name, which every file system accepts."""


def plain(text: object, keep: str = "\n") -> str:
    """Replace characters that control a terminal, reorder a line or cannot be encoded by escapes (`\\x1b` for ESC).

    These are control characters, bidirectional overrides, and halves of surrogate pairs.

    Args:
        text: Any object; its `str` is used.
        keep: Control characters that stay.
    """
    text = str(text)
    if text.isprintable():  # true for most texts, and a hundred times faster
        return text
    return "".join(c if c in keep or not _is_unsafe(c) else _escaped(c) for c in text)


def one_line(text: object, most: int = 2000) -> str:
    """`plain` text in one line of at most `most` characters; the middle of a longer text is left out."""
    text = str(text)
    if len(text) > 2 * most:  # before the check of every character
        text = text[:most] + text[-most:]
    line = plain(" ".join(text.split("\n")), keep="")
    half = most // 2 - 3
    return line if len(line) <= most else f"{line[:half]} ... {line[-half:]}"


def csv_cell(value: Any) -> Any:
    """Make a value safe for a CSV cell: a text that looks like a formula gets a leading quote.

    Numbers stay as they are, also as text. `csv_text` is the inverse."""
    if not isinstance(value, str):
        return value
    value = plain(value)
    return f"'{value}" if value.lstrip("'").startswith(FORMULA) and not _is_number(value) else value


def csv_text(cell: str) -> str:
    """The inverse of `csv_cell` for texts."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def file_name(text: str) -> str:
    """Make one path component from a text: letters, digits and `._@+=-` stay, other characters become `_`.

    The result is never empty, `.` or `..`, has no leading dot, and has at most `NAME_LENGTH` characters."""
    name = re.sub(r"[^\w.@+=-]", "_", plain(text)).lstrip(".")
    return name[:NAME_LENGTH] or "_"


def _is_unsafe(character: str) -> bool:
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
    """A rich text in this style, without markup or escapes."""
    return Text(plain(text), style=style)


class PlainConsole(Console):
    """A rich console that interprets no markup and no emoji names, and passes on no escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def print(self, *objects: Any, **options: Any) -> None:
        """Print with rich. With `soft_wrap`, lines are wrapped on a terminal only, and only between words."""
        hide()
        if options.get("soft_wrap") and self.file.isatty():
            objects = tuple(
                Text(wrapped(o, self.width), style=o.style if isinstance(o, Text) else "") for o in objects
            )
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render `plain` text."""
        return super().render_str(plain(text), **options)

    def on_broken_pipe(self) -> None:
        """Raise the error. Rich would exit with code 1, which here means a verdict of `apt-bench check`."""
        raise BrokenPipeError


def plain_console(file: IO[str] | None = None) -> PlainConsole:
    """The console that commands print to.

    Args:
        file: By default stdout. Lines are wrapped only on a terminal, not in a pipe or a file. With `NO_COLOR` there
            are no colours, no bars and no other terminal escapes.
    """
    stream = file or sys.stdout
    if not stream.isatty():
        return PlainConsole(file=file, width=1000)
    return PlainConsole(file=file, force_terminal=None if may_animate(stream) else False)


LINE, LINES = 1200, 60
"""Maximum length of a line of a message, and maximum number of lines: a name in it may be as long as a file."""


def message(text: object) -> str:
    """Make a message of one or more lines safe to print and limit its length."""
    lines = str(text).split("\n", LINES + 1)
    more = [f"  and more; only {LINES} lines are shown"] if len(lines) > LINES else []
    return "\n".join([*(one_line(line, LINE) for line in lines[:LINES]), *more])


def say(text: object) -> None:
    """Print a message on stderr with the prefix `apt-bench: `. A terminal's lines end between words."""
    hide()
    said = f"apt-bench: {message(text)}"
    if sys.stderr.isatty():
        said = wrapped(said, shutil.get_terminal_size().columns)
    print(said, file=sys.stderr)


def wrapped(text: object, width: int) -> str:
    """Plain text in lines of at most `width` characters, which end between words. A longer word stays whole."""
    return "\n".join(
        textwrap.fill(line, max(20, width), break_long_words=False, break_on_hyphens=False)
        for line in plain(text).split("\n")
    )
