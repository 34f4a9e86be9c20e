"""Ctrl-C and SIGTERM: a clean stop at the next good moment; a second one forces it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask for a clean stop, which the yielded function reports; a second one forces it."""
    asked = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    with _handling(handle):
        yield asked.is_set


@contextmanager
def interrupt_on_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM raise KeyboardInterrupt; the yielded function says whether one came. An import that is cut
    short so may raise anything else instead, in numpy for one a RecursionError."""
    asked = threading.Event()

    def handle(number: int, frame: Any) -> None:
        asked.set()
        raise KeyboardInterrupt

    with _handling(handle):
        yield asked.is_set


@contextmanager
def handlers_kept() -> Iterator[None]:
    """What the block sets for SIGINT and SIGTERM is undone: Ray's start makes SIGTERM end the process silently."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _handling(handle: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main one may
        yield
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
