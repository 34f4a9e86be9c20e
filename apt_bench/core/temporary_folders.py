"""Temporary folders that a later command removes if their process was killed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from apt_bench.core.files import try_remove

PREFIX = "apt-bench-scratch-"
YOUNG = 60.0
"""Seconds for which an unlocked folder is kept: the process that made it may be about to lock it."""


@contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """Make a folder for temporary files and remove it at the end.

    This process locks the folder, so that `sweep` can distinguish it from the folder of a killed process. Its name
    contains `kind` and the process id."""
    _swept()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-{os.getpid()}-"))
    handle = lock(folder)
    try:
        yield folder
    finally:
        try_remove(folder)
        if handle is not None:
            os.close(handle)


def sweep() -> None:
    """Remove the temporary folders of processes that have ended. Without file locks nothing is removed."""
    try:
        found = list(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))
    except OSError:  # no folder for temporary files
        return
    for folder in found:
        try:
            if folder.is_symlink() or time.time() - folder.stat().st_mtime < YOUNG:
                continue
        except OSError:
            continue
        handle = lock(folder)
        if handle is not None:
            try_remove(folder)
            os.close(handle)


_swept = cache(sweep)  # once per process, since workers may run on other machines


def lock(folder: Path) -> int | None:
    """Lock a folder. Returns the handle that holds the lock, or None if it is taken or cannot be locked."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
