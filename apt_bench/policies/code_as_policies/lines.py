"""A file of JSON lines that several processes append to."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apt_bench.core.errors import UserError
from apt_bench.core.files import NOT_LOCKABLE, parse_object, read_bytes, reason

LONGEST_LINE = 4 * 2**20
"""Bytes of one line, at most."""

LARGEST_FILE = 512 * 2**20
"""Bytes of the file, at most."""


def append(path: Path, value: Mapping[str, Any], first: Mapping[str, Any] | None = None) -> None:
    """Append one line. The file is locked meanwhile, and the rest of a line that a killed process left is removed.

    Args:
        path: The file; it is made where it is missing.
        value: The line.
        first: The first line of a file that is empty until now; `value` follows it.

    Raises:
        UserError: The file cannot be written.
    """
    lines = [
        json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n"
        for one in (first, value)
        if one is not None
    ]
    with _locked(path) as handle:
        size = os.fstat(handle).st_size
        kept = size
        if size:
            tail = os.pread(handle, LONGEST_LINE, max(0, size - LONGEST_LINE))
            kept -= len(tail) - (tail.rfind(b"\n") + 1)
        if kept < size:
            os.ftruncate(handle, kept)
        content = "".join(lines if first is None or not kept else lines[1:]).encode()
        while content:
            content = content[os.write(handle, content) :]


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0), 0o644)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write {path}: {reason(error)}.") from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "It is not a regular file")
        _lock(handle)
        yield handle
    except OSError as error:
        raise UserError(f"Cannot write {path}: {reason(error)}.") from None
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """Wait for the lock. Where the file system or the platform has none, appending alone must do."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)
    except ImportError:
        return
    except OSError as error:
        if error.errno not in NOT_LOCKABLE:
            raise


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines from a position on. The rest of a line that a killed process left is not read.

    Args:
        path: The file.
        offset: Position of the first line to read.

    Returns:
        The lines, and the position after them.

    Raises:
        UserError: The file cannot be read, is too large, or holds a line that is not a JSON object.
    """
    content = read_bytes(path, LARGEST_FILE, offset)
    end = content.rfind(b"\n") + 1
    found = []
    for number, line in enumerate(content[:end].split(b"\n")[:-1], 1):
        where = f"{path}, line {number}" + (f" after byte {offset}" if offset else "")
        if len(line) > LONGEST_LINE:
            raise UserError(f"{where} is longer than {LONGEST_LINE:,} bytes.")
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise UserError(f"{where} is damaged: it is not UTF-8 text.") from None
        found.append(parse_object(text, where))
    return found, offset + end
