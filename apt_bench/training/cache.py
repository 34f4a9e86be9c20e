"""Folders that are made once and found again: images, features, pictures.

An entry is written beside its place with the digests of its files and then renamed, so it is there as a whole or not at
all. One process makes it while others wait. What is damaged is made anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from apt_bench.core.digests import check_digests, write_digests
from apt_bench.core.errors import UserError
from apt_bench.core.files import PART, Locked, exclusive, reason, try_remove
from apt_bench.core.paths import cache_dir
from apt_bench.core.text import say as say_on_stderr

Tick = Callable[[int, int], None]
"""Called with (done, total) while something long goes on."""
Say = Callable[[str], None]
"""Tells a person one line."""
T = TypeVar("T")

POLL = 0.5
"""Seconds between two looks at a lock that another process holds."""

DAMAGE = (UserError, OSError, ValueError, KeyError, TypeError, RuntimeError)
"""What a reader of an entry may raise where it is damaged."""


def default_cache() -> Path:
    """`core.paths.cache_dir`. Raises UserError for a user without a home folder."""
    folder = cache_dir()
    if folder is None:
        raise UserError("There is no home folder to keep prepared images in. Give --cache FOLDER.")
    return folder


def digest(*what: Any) -> str:
    """16 hex digits of the SHA-256 of their JSON."""
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def alone(folder: Path, say: Say = say_on_stderr) -> Iterator[bool]:
    """Wait until no other process makes the entry `folder` = CACHE/KIND/NAME, and keep others out meanwhile. Yields
    whether the file system has locks at all."""
    lock = folder.parent.parent / "locks" / f"{folder.parent.name}-{folder.name}"
    with ExitStack() as stack:
        waiting = False
        while True:
            try:
                locked = stack.enter_context(exclusive(lock, "apt-bench train"))
                break
            except Locked:
                if not waiting:
                    say(f"Waiting for another process that makes {folder}.")
                waiting = True
                time.sleep(POLL)
        yield locked


def entry(
    folder: Path, make: Callable[[Path], None], read: Callable[[Path], T], say: Say = say_on_stderr
) -> T:
    """What `read` makes of the entry `folder`. Where it is not there or damaged, `make` fills a fresh folder first.

    Raises UserError where the cache cannot be written, and whatever `make` raises."""
    if folder.is_dir():
        try:
            return _checked(folder, read)
        except DAMAGE:
            pass  # looked at again below, where nobody else writes
    with alone(folder, say) as locked:
        if folder.is_dir():
            try:
                return _checked(folder, read)
            except DAMAGE as error:
                say(f"The cache {folder} is damaged ({reason(error).rstrip('.')}). It is made anew.")
                try_remove(folder)
        if locked:  # then what bears this suffix is of a process that was killed
            for stale in folder.parent.glob(f"{folder.name}.*{PART}"):
                try_remove(stale)
        _write(folder, make, say)
        return _checked(folder, read)


def _checked(folder: Path, read: Callable[[Path], T]) -> T:
    check_digests(folder)  # entries of older versions have none
    return read(folder)


def _write(folder: Path, make: Callable[[Path], None], say: Say) -> None:
    part = folder.with_name(f"{folder.name}.{os.getpid()}{PART}")
    try:
        part.mkdir(parents=True, exist_ok=True)
        make(part)
        write_digests(part)
        try:
            part.rename(folder)
        except OSError as error:  # without locks another process may have been faster
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    except OSError as error:
        raise UserError(
            f"The cache {folder.parent} cannot be written: {reason(error)}. Choose another with --cache."
        ) from error
    except KeyboardInterrupt:
        say(f"Interrupted while {folder} was made. Nothing of it is kept; it will be made anew.")
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def need(folder: Path, size: int) -> None:
    """Raises UserError where the disk below `folder` has no room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"The cache {folder.parent} needs {size / 1e9:.2f} GB and has {free / 1e9:.2f} GB free. Free some, "
            "choose another folder with --cache, or look at fewer steps (data.look_every in the configuration)."
        )
