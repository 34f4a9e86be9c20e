"""Ctrl-C and SIGTERM: the first one requests a clean stop, the second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """The first SIGINT or SIGTERM makes the yielded function return True; the second raises KeyboardInterrupt."""
    asked = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    with _handling(handle):
        yield asked.is_set


@contextmanager
def interrupt_on_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM raise KeyboardInterrupt; the yielded function returns whether one arrived.

    An interrupted import may raise another exception instead, such as a RecursionError in numpy."""
    asked = threading.Event()

    def handle(number: int, frame: Any) -> None:
        asked.set()
        raise KeyboardInterrupt

    with _handling(handle):
        yield asked.is_set


@contextmanager
def keep_handlers() -> Iterator[None]:
    """Keep the handlers of SIGINT and SIGTERM while the block may set others, and hold their first exception.

    The end of the block raises it, because Python only prints an exception that a handler raises inside some callbacks,
    such as those after a fork, and because the start of Ray may crash where it is interrupted. A second one is raised
    at once.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    raised: list[BaseException] = []

    def handle(number: int, frame: Any) -> None:
        handler: Any = before[signal.Signals(number)]
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)
            if len(raised) > 1:
                raise

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if raised:
            raise raised[0]


@contextmanager
def _handling(handle: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
