"""Temporary folders that do not stay after a kill: a later command removes those whose process is gone."""

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
"""Seconds for which a folder that nobody has locked is left alone: its maker may be about to lock it."""


@contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """A new folder for temporary files, removed at the end. This process holds a lock on it, so that `sweep` can tell
    a folder in use from one whose process was killed. The name carries `kind` and the process's id, for people."""
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
    """Remove the scratch folders of processes that are gone. Where nothing can be locked, nothing is removed."""
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


_swept = cache(sweep)  # once per process: workers may run on other machines than the driver


def lock(folder: Path) -> int | None:
    """A handle that holds the folder's lock; None where another process has it, or where there are no locks."""
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
