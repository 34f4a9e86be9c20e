"""Name the step in progress, so that no command is silent for long.

On a terminal, stderr shows one line with the step and its seconds, which is erased when the step ends. Where `NO_COLOR`
is set, each step that takes long is named in a line of its own. Where stderr or stdout is no terminal, only a command
that logs its progress (`run`) names its steps, on its console.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

LIVE_AFTER, PLAIN_AFTER = 0.5, 2.5
"""Seconds after which a step is shown in a line that is erased later, and least seconds before and between lines that
stay. A shorter block is not shown."""

TICK = 0.2
FRAMES = "|/-\\"

_lock = threading.RLock()
_steps: list[_Step] = []
_drawn = False


def may_animate(stream: IO[str]) -> bool:
    """Whether terminal escapes may be written to this stream: it is a terminal, and `NO_COLOR` is not set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    return stream.isatty() and not plain


@contextmanager
def status(text: str, log: Callable[[str], Any] | None = None) -> Iterator[Callable[[str], None]]:
    """Show the text while the block runs. An inner block replaces the text of an outer one.

    Args:
        text: What is done, such as `Starting Ray`.
        log: Prints a line where there is no terminal; None = that of the outer block, if any.

    Yields:
        A function that replaces the text by that of the next step.
    """
    with _lock:
        step = _Step(text, log or (_steps[-1].log if _steps else None))
        _steps.append(step)
    threading.Thread(target=step.show, name="status", daemon=True).start()
    try:
        yield step.update
    finally:
        step.over.set()
        with _lock:
            _steps.remove(step)
            hide()


def name_step(text: str) -> None:
    """Replace the text of the innermost block, if there is one. For code that does not open the block itself."""
    with _lock:
        if _steps:
            _steps[-1].update(text)


def hide() -> None:
    """Erase the line, so that other output can be printed. The next tick draws it again."""
    global _drawn
    if _drawn:
        with _lock:
            _write("\r\x1b[2K")
            _drawn = False


class _Step:
    def __init__(self, text: str, log: Callable[[str], Any] | None) -> None:
        self.over = threading.Event()
        self.log = log
        # With --json, stdout and stderr are the same stream.
        self._live = may_animate(sys.stderr) and may_animate(sys.stdout) and sys.stdout is not sys.stderr
        self._line = (lambda text: _write(f"{text}\n")) if sys.stderr.isatty() else log
        self._quiet = time.monotonic()  # since the block began, or since its last line that stays
        self.update(text)

    def update(self, text: str) -> None:
        """Replace the text."""
        self._text = "".join(c if c.isprintable() else "?" for c in text)
        self._start, self._named = time.monotonic(), False

    def show(self) -> None:
        """Draw the line until the step is over. Runs in a thread."""
        delay = LIVE_AFTER if self._live else PLAIN_AFTER
        while (self._live or self._line) and not self.over.wait(TICK):
            with _lock:
                now = time.monotonic()
                if now - self._quiet >= delay and not self.over.is_set() and _steps[-1] is self:
                    self._draw(now)

    def _draw(self, now: float) -> None:
        global _drawn
        if self._live:
            seconds = now - self._start
            line = f"{FRAMES[int(seconds / TICK) % len(FRAMES)]} {self._text} ({seconds:.0f} s)"
            _write(f"\r\x1b[2K{line[: shutil.get_terminal_size().columns - 1]}")
            _drawn = True
        elif self._line and not self._named:
            self._line(f"{self._text} ...")
            self._named, self._quiet = True, now


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # a closed stream
        sys.stderr.write(text)
        sys.stderr.flush()
