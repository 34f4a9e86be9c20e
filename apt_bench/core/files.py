"""Read files up to a size limit, write files atomically, and lock folders against a second writer."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from apt_bench.core.errors import UserError
from apt_bench.core.jsonable import INTEGERS, jsonable

TEXT_LIMIT = 64 * 2**20
"""Maximum size in bytes of a JSON or YAML file."""

VALUES = 4_000_000
"""Maximum number of values in a JSON text. In memory a value takes up to a hundred times its size in the text."""

PART = ".part"
"""Suffix of a file or folder that is being written. After a crash it can be deleted."""


def reason(error: BaseException) -> str:
    """The operating system's text for an error, such as `No space left on device`."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, buffered.

    Raises:
        OSError: The file cannot be opened, or is a pipe, a socket or a device. Reading those may never end.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: Path, limit: int = TEXT_LIMIT, offset: int = 0) -> bytes:
    """Read a regular file, from the byte `offset` on.

    Raises:
        UserError: The file cannot be read, or there are more than `limit` bytes to read.
    """
    try:
        with open_regular(path) as file:
            file.seek(offset)
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {reason(error)}.") from None
    except ValueError as error:  # a null byte in the name
        raise UserError(f"'{path}' is not a path: {error}.") from None
    if len(content) > limit:
        raise UserError(f"{path} is longer than {limit:,} bytes, the maximum for such a file.")
    return content


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """Read a regular file as UTF-8 text, whatever the locale. A byte order mark is dropped.

    Raises:
        UserError: The file cannot be read, is longer than `limit` bytes, or is not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None


def parse_json(text: str, constants: bool = False) -> Any:
    """Parse a JSON text.

    Args:
        text: The JSON text.
        constants: Accept `NaN` and `Infinity`, which older versions wrote.

    Raises:
        ValueError: The text is not JSON or has more than `VALUES` values (checked before parsing); a number is not
            finite or has more than 63 bits; a key is repeated; or a text has half of a surrogate pair, which cannot be
            written again.
    """
    if len(text) > VALUES and sum(map(text.count, ",[{")) > VALUES:
        raise ValueError(f"it has more than {VALUES:,} values")
    try:
        value = _decoder(constants).decode(text)
        if "\\" in text and ("\\ud" in text or "\\uD" in text):  # one character is found much faster
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, limit: int = TEXT_LIMIT) -> dict[str, Any]:
    """Read a JSON file whose content is an object.

    Raises:
        UserError: The file cannot be read, is not JSON (see `parse_json`), or holds something else.
    """
    return parse_object(read_text(path, limit), str(path))


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The object in a JSON text.

    Args:
        text: JSON, see `parse_json`.
        where: The place of the text; begins the message.

    Raises:
        UserError: The text is not JSON, or holds something else.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UserError(f"{where} is damaged: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is damaged: expected an object, found {type(value).__name__}.")
    return value


@cache
def _decoder(constants: bool) -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_constant=float if constants else _no_constant,
        parse_float=_finite,
        parse_int=_bounded,
        object_pairs_hook=_object,
    )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _bounded(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) >= INTEGERS:
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"the key '{twice}' is repeated")
    return value


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: write it beside its place, flush it to the disk, then rename it.

    Raises:
        OSError: The file cannot be written. Nothing is left behind.
    """
    if path.parent.absolute() == Path("/dev") or (path.exists() and not (path.is_file() or path.is_dir())):
        raise OSError(errno.EINVAL, "It is a device, a pipe or a stream, and would be replaced", str(path))
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")  # another process may write the same file
    try:
        try_remove(part)
        with open(part, "xb") as file:  # never through an existing link or into a pipe
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:  # Ctrl-C included
        try_remove(part)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping atomically as indented JSON; its values go through `jsonable`. Raises OSError."""
    text = json.dumps(jsonable(value), indent=2, ensure_ascii=False) + "\n"
    write_whole(path, text.encode())


def require_writable(path: Path) -> None:
    """Check that a file can be written at this path, before the work whose result goes there.

    It makes missing folders and does not change an existing file. Raises UserError if the path cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = os.path.lexists(path)
        with open(path, "ab"):
            pass
        if not there:
            path.unlink()
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write {path}: {reason(error)}.") from None


def try_remove(path: Path) -> None:
    """Remove a file or folder; ignore errors."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        pass


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, for a name that comes from a file.

    Raises:
        UserError: The path leaves the folder by `..`, an absolute path or a link.
    """
    try:
        path = folder / name
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links
        pass
    raise UserError(f"'{name}' leaves the folder {folder}.")


NOT_OURS = (
    errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT,
    errno.EIO, errno.ESTALE,
)  # fmt: skip
"""Errors of a path, a permission or a disk, which the user can fix."""

NOT_LOCKABLE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""Errors of file systems that have no locks."""


class Locked(UserError):
    """Another process is writing to the folder."""


@contextmanager
def exclusive(folder: Path, who: str) -> Iterator[bool]:
    """Lock a folder against a second writer while the block runs. The lock ends with its process.

    Args:
        folder: The folder; it is made if needed.
        who: Name of the writer for messages, such as `apt-bench run`.

    Yields:
        Whether the folder is locked. Where the file system has no locks, a warning goes to stderr.

    Raises:
        Locked: Another process holds the lock.
        UserError: The folder cannot be written.
    """
    from apt_bench.core.text import say

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write to {folder}: {reason(error)}. Give --out another directory.") from None
    try:
        locked = _locked(handle, folder, who)
        if not locked:
            say(f"{folder} cannot be locked here. Do not start a second {who} in it while this one runs.")
        yield locked
    finally:
        os.close(handle)


def is_locked(folder: Path) -> bool | None:
    """Whether a process holds the lock of `exclusive` on this folder; None where the file system has no locks.

    Raises:
        OSError: The folder cannot be read.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in NOT_LOCKABLE:
            return None
        raise
    finally:
        os.close(handle)


def _locked(handle: int, folder: Path, who: str) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)  # it may be `is_locked`, which holds the lock for microseconds
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        raise Locked(f"Another {who} is writing to {folder}. Wait for it, or give --out.") from None
    except OSError as error:
        if error.errno in NOT_LOCKABLE:
            return False
        raise UserError(f"Cannot lock {folder}: {reason(error)}.") from None
