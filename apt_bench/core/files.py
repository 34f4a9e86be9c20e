"""Files: read within a limit, written whole or not at all, folders locked against a second writer."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from apt_bench.core.errors import UserError
from apt_bench.core.jsonable import INTEGERS, jsonable

TEXT_LIMIT = 64 * 2**20
"""Bytes of a JSON or YAML file that is read, at most."""

VALUES = 4_000_000
"""Of a JSON text, at most: a value in memory is up to a hundred times as large as in the text."""

PART = ".part"
"""Suffix of a file or folder that is being written; what bears it after a crash is worth nothing."""


def reason(error: BaseException) -> str:
    """What went wrong, in the system's words: `No space left on device`."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, buffered. Raises OSError, also for what is no regular file: a pipe or a device that lies
    where a file is expected may never end, or wait for ever."""
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """The content of a regular file. Raises UserError where it cannot be read or is longer than `limit` bytes."""
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {reason(error)}.") from None
    except ValueError as error:  # a null byte in the name
        raise UserError(f"'{path}' is no path: {error}.") from None
    if len(content) > limit:
        raise UserError(f"{path} is longer than {limit:,} bytes, the most that is read of such a file.")
    return content


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """The same as text: UTF-8, whatever the locale; a byte order mark is dropped."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None


def parse_json(text: str, constants: bool = False) -> Any:
    """The value of a JSON text. Raises ValueError where it is none, where a number is not finite or has more than 63
    bits, where a key is repeated, or where text has half of a surrogate pair, which cannot be written again; and,
    before it is parsed, where it has more than `VALUES` values.

    constants: take `NaN` and `Infinity`, which older versions wrote."""
    if sum(map(text.count, ",[{")) > VALUES:
        raise ValueError(f"it has more than {VALUES:,} values")
    try:
        value = json.loads(
            text,
            parse_constant=float if constants else _no_constant,
            parse_float=_finite,
            parse_int=_bounded,
            object_pairs_hook=_object,
        )
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, limit: int = TEXT_LIMIT) -> dict[str, Any]:
    """The object in a JSON file, see `parse_json`. Raises UserError where there is none."""
    text = read_text(path, limit)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: expected an object, found {type(value).__name__}.")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


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
    """Write a file that is there as a whole or not at all: beside its place, flushed to the disk, then renamed.

    Raises OSError; nothing of the attempt stays."""
    if path.parent.absolute() == Path("/dev") or (path.exists() and not (path.is_file() or path.is_dir())):
        raise OSError(errno.EINVAL, "It is a device, a pipe or a stream, and would be replaced", str(path))
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")  # another process may write the same file
    try:
        try_remove(part)
        with open(part, "xb") as file:  # never through a link, or into a pipe, that somebody put there
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:  # Ctrl-C included
        try_remove(part)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_whole` of an indented JSON object, of anything that `jsonable` takes."""
    text = json.dumps(jsonable(value), indent=2, ensure_ascii=False) + "\n"
    write_whole(path, text.encode())


def require_writable(path: Path) -> None:
    """Raises UserError where no file can be written at this path: asked before the work whose result goes there. Makes
    the folders, and leaves a file that is there as it is."""
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
    """Remove a file or folder as far as that can be done."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        pass


def sha256(path: Path) -> str:
    """Hex digest of a file's content. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, for a name from a file. Raises UserError where that leaves the folder, by `..`, an absolute path
    or a link."""
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
"""Errors of a path, a permission or a disk: a person can mend them."""

NOT_LOCKABLE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What file systems without locks answer."""


class Locked(UserError):
    """Another process writes there."""


@contextmanager
def exclusive(folder: Path, who: str) -> Iterator[bool]:
    """Keep a second writer out of this folder (made if needed) while the block runs. The lock dies with its process.

    who: what writes there, for the message: `apt-bench run`. Where the system has no such locks, a note on stderr says
    that nothing keeps a second writer out, and the block is given False. Raises Locked where another process holds the
    lock, UserError where the folder cannot be written."""
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


def _locked(handle: int, folder: Path, who: str) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        raise Locked(f"Another {who} is writing to {folder}. Wait for it, or give --out.") from None
    except OSError as error:
        if error.errno in NOT_LOCKABLE:
            return False
        raise UserError(f"Cannot lock {folder}: {reason(error)}.") from None
