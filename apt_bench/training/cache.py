"""Cache entries: folders that are made once and reused: images, features, renderings.

An entry is written beside its final place, together with digests of its files, and then renamed: it exists completely
or not at all. One process makes an entry while others wait. A damaged entry is made again.
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
from apt_bench.training.progress import Say

T = TypeVar("T")

POLL = 0.5
"""Seconds between two attempts to take a lock that another process holds."""

DAMAGE = (UserError, OSError, ValueError, KeyError, TypeError, RuntimeError)
"""What reading a damaged entry may raise."""


def default_cache() -> Path:
    """`core.paths.cache_dir`.

    Raises:
        UserError: The user has no home folder.
    """
    folder = cache_dir()
    if folder is None:
        raise UserError("There is no home folder for the cache. Give --cache FOLDER.")
    return folder


def digest(*what: Any) -> str:
    """16 hex digits of the SHA-256 of the values' JSON."""
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def alone(folder: Path, say: Say = say_on_stderr) -> Iterator[bool]:
    """Lock the entry `folder` = CACHE/KIND/NAME; wait while another process holds it.

    Yields:
        Whether the file system supports locks.
    """
    lock = folder.parent.parent / "locks" / f"{folder.parent.name}-{folder.name}"
    with ExitStack() as stack:
        waiting = False
        while True:
            try:
                locked = stack.enter_context(exclusive(lock, "apt-bench train"))
                break
            except Locked:
                if not waiting:
                    say(f"Waiting for another process that is making {folder}.")
                waiting = True
                time.sleep(POLL)
        yield locked


def entry(
    folder: Path, make: Callable[[Path], None], read: Callable[[Path], T], say: Say = say_on_stderr
) -> T:
    """Read a cache entry; make it first if it is missing or damaged.

    Args:
        folder: The entry, CACHE/KIND/NAME.
        make: Fills an empty folder with the entry's files.
        read: Reads the entry from its folder.
        say: Receives messages.

    Returns:
        What `read` returns.

    Raises:
        UserError: The cache cannot be written. Whatever `make` raises is raised too.
    """
    if folder.is_dir():
        try:
            return _checked(folder, read)
        except DAMAGE:
            pass  # checked again below, under the lock
    with alone(folder, say) as locked:
        if folder.is_dir():
            try:
                return _checked(folder, read)
            except DAMAGE as error:
                say(f"The cache {folder} is damaged ({reason(error).rstrip('.')}). It is made again.")
                try_remove(folder)
        if locked:  # then a partial entry belongs to a process that was killed
            for stale in folder.parent.glob(f"{folder.name}.*{PART}"):
                try_remove(stale)
        _write(folder, make, say)
        return _checked(folder, read)


def _checked(folder: Path, read: Callable[[Path], T]) -> T:
    check_digests(folder)  # entries of older versions have no digests
    return read(folder)


def _write(folder: Path, make: Callable[[Path], None], say: Say) -> None:
    part = folder.with_name(f"{folder.name}.{os.getpid()}{PART}")
    try:
        part.mkdir(parents=True, exist_ok=True)
        make(part)
        write_digests(part)
        try:
            part.rename(folder)
        except OSError as error:  # without locks another process may have finished first
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    except OSError as error:
        raise UserError(
            f"The cache {folder.parent} cannot be written: {reason(error)}. Choose another with --cache."
        ) from error
    except KeyboardInterrupt:
        say(f"Interrupted while making {folder}. The partial entry is deleted.")
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def require_space(folder: Path, size: int) -> None:
    """Check the free space of a disk.

    Args:
        folder: A folder on it.
        size: Bytes that are needed.

    Raises:
        UserError: Less is free.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"The cache {folder.parent} needs {size / 1e9:.2f} GB and has {free / 1e9:.2f} GB free. Free some space, "
            "choose another folder with --cache, or use fewer images (data.image_every in the configuration)."
        )
