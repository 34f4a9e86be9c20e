"""Safe reading of HDF5 files.

Nothing outside the file is opened (no external link, external storage or virtual dataset). A declared size is compared
with the stored size before memory is allocated. Every error names the file, the place in it and the remedy.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.core.files import reason
from apt_bench.core.text import one_line
from apt_bench.demos.limits import DEFLATE, FREE, MAX_ATTRIBUTE, MAX_BYTES, MAX_DEMOS, RATIO

FAILURES = (OSError, KeyError, RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError)
"""Exceptions that h5py raises for damaged files."""

FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
HEAP = b"GCOL"
LINKS = 16
"""Longest chain of soft links that is followed."""


@contextmanager
def open_hdf5(path: Path) -> Iterator[Node]:
    """Open a file for reading.

    Yields:
        Its root group.

    Raises:
        UserError: It cannot be opened.
    """
    if not path.is_file():
        raise UserError(f"No file {path}.")
    try:
        source = _Source(path)
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise UserError(
                f"{path} is open for writing in another process. Try again when that process has closed it."
            ) from None
        raise UserError(f"Cannot read {path}: {reason(error)}.") from None
    with source:
        try:
            file = h5py.File(source, "r")
        except FAILURES as error:
            raise UserError(
                f"{path} is not a complete HDF5 file ({_first(error)}). If it was downloaded or copied, do that again."
            ) from None
        try:
            yield Node(file, path, "", file)
        finally:
            with suppress(*FAILURES):
                file.close()


class _Source(io.FileIO):
    """The bytes of a file as the HDF5 library reads them, locked against writers in the same way as the library does.

    The library loops for ever on a damaged global heap (where it keeps text). A heap block whose parts do not add up
    loses its signature here, which the library reports as an error. Raises OSError; BlockingIOError if a writer has the
    file open.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r")
        try:
            import fcntl

            fcntl.flock(self, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise
        except (ImportError, OSError):  # without locks, writers have none either
            pass

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and (got := super().readinto(view[done:])):
            done += got
        view[done:] = bytes(len(view) - done)  # the library does not check how many bytes it got
        if view[:4] == HEAP and not _adds_up(view):
            view[:4] = bytes(4)
        return len(view)


def _adds_up(heap: memoryview) -> bool:
    """Whether the parts of a global heap follow one another to its end, as far as they are in `heap` (HDF5 file format,
    III.E): a header of 16 bytes, then for each part its number, 6 bytes, its length, and its data padded to 8 bytes."""
    end, at = int.from_bytes(heap[8:16], "little"), 16
    while at + 16 <= min(end, len(heap)):
        number, size = (
            int.from_bytes(heap[at : at + 2], "little"),
            int.from_bytes(heap[at + 8 : at + 16], "little"),
        )
        step = 16 + (size + 7) // 8 * 8 if number else size  # number 0: free space
        if step < 16 or at + step > end:
            return False
        at += step
    return True


class Node:
    """A group of an open file."""

    def __init__(self, group: h5py.Group, path: Path, name: str, root: h5py.Group) -> None:
        self._group, self._path, self._root = group, path, root
        self.name = name
        self._found: dict[str, Any] = {}

    def where(self, key: str = "") -> str:
        """The place for messages: the file and the name inside it."""
        return f"{self._path}: {'/'.join(n for n in (self.name, key) if n) or 'the root'}"

    def names(self) -> list[str]:
        """Names of everything in this group, sorted."""
        with self._guard():
            found: list[str] = []
            for name in self._group:
                if not isinstance(name, str):
                    raise UserError(f"{self.where()} has the name {name!r:.80}, which is not UTF-8.")
                found.append(name)
                if len(found) > MAX_DEMOS:
                    raise UserError(f"{self.where()} holds more than {MAX_DEMOS:,} names.")
            return sorted(found)

    def listed(self) -> str:
        """The first names, for messages."""
        return "it has " + (one_line(", ".join(self.names()[:8]), 300) or "nothing")

    def has(self, key: str) -> bool:
        """Whether the name exists. Raises UserError for a link out of the file."""
        return self._find(key, missing=True) is not None

    def group(self, key: str) -> Node:
        """The group of this name."""
        found = self._find(key)
        if not isinstance(found, h5py.Group):
            raise UserError(f"{self.where(key)} is not a group.")
        return Node(found, self._path, "/".join(n for n in (self.name, key) if n), self._root)

    def copy(self, key: str, target: h5py.Group, name: str) -> None:
        """Copy the group of this name into another file, without recompressing."""
        found = self._find(key)
        with self._guard(key):
            found.file.copy(found, target, name)

    def shape(self, key: str) -> tuple[int, ...]:
        """Declared shape of the array of this name."""
        data = self._dataset(key)
        with self._guard(key):
            return tuple(data.shape or ())

    def check(self, key: str, shape: tuple[int | None, ...], kinds: str = "fiu") -> h5py.Dataset:
        """Check that an array can be read: its shape, type, completeness, and size.

        Args:
            key: Name of the array.
            shape: Expected shape; None = any length.
            kinds: Accepted kinds of numpy dtypes, at most 8 bytes wide; `u1` = uint8.

        Returns:
            The array, not read yet.

        Raises:
            UserError: It cannot be read.
        """
        data = self._dataset(key)
        with self._guard(key):
            found, kind = data.shape, data.dtype
            if (
                found is None
                or len(found) != len(shape)
                or any(wanted not in (None, n) for wanted, n in zip(shape, found, strict=True))
            ):
                wanted = ", ".join("any" if n is None else str(n) for n in shape)
                raise UserError(f"{self.where(key)} has the shape {found}; it must be ({wanted}).")
            if kind.kind not in kinds or kind.itemsize > 8:
                raise UserError(
                    f"{self.where(key)} holds {one_line(kind, 80)}; it must hold "
                    f"{'uint8' if kinds == 'u1' else 'numbers'}."
                )
            if kinds == "u1" and kind.itemsize != 1:
                raise UserError(f"{self.where(key)} holds {kind}; it must hold uint8.")
            self._check_size(key, data)
        return data

    def read(self, key: str, shape: tuple[int | None, ...], kinds: str = "fiu") -> np.ndarray:
        """The values of an array that passes `check`; they must be finite."""
        data = self.check(key, shape, kinds)
        with self._guard(key):
            self._check_blocks(key, data)
            values = data[()]
            if values.dtype.byteorder not in "=|":
                values = values.astype(values.dtype.newbyteorder("="))
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            first = tuple(int(n) for n in np.argwhere(~np.isfinite(values))[0])
            raise UserError(f"{self.where(key)} holds NaN or infinity, first at {first}.")
        return np.asarray(values)

    def attribute(self, key: str) -> Any:
        """The attribute of this name: a number, a `str`, a list of either, or None if it does not exist."""
        where = f"{self.where()}: attribute '{key}'"
        with self._guard():
            if not self._group.attrs.__contains__(key):
                return None
            found = self._group.attrs.get_id(key)
            text = h5py.check_string_dtype(found.dtype)
            size = prod(found.shape or ()) * max(found.dtype.itemsize, 1)
            if found.shape is None or size > MAX_ATTRIBUTE or found.get_storage_size() > MAX_ATTRIBUTE:
                raise UserError(f"{where} is empty, or of more than {MAX_ATTRIBUTE:,} bytes.")
            if text is None and found.dtype.kind not in "fiub":
                raise UserError(
                    f"{where} is of the type {one_line(found.dtype, 80)}; it must be text or a number."
                )
            value = self._group.attrs[key]
        if isinstance(value, (np.ndarray, np.generic)):
            value = value.tolist()
        several = value if isinstance(value, list) else [value]
        several = [_decoded(v, where) for v in several]
        return several if isinstance(value, list) else several[0]

    def attributes(self) -> dict[str, Any]:
        """All attributes of this group."""
        with self._guard():
            names = list(self._group.attrs)
        return {name: self.attribute(name) for name in names}

    def text(self, key: str) -> str | None:
        """The attribute of this name, which must be text; None if it does not exist."""
        value = self.attribute(key)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{self.where()}: attribute '{key}' is {value!r:.80}; it must be text.")
        return value

    @contextmanager
    def _guard(self, key: str = "") -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            raise UserError(
                f"{self.where(key)} is damaged ({_first(error)}). If the file was downloaded or copied, do that "
                "again; otherwise create it again."
            ) from None

    def _find(self, key: str, missing: bool = False) -> Any:
        """The object of this name; with `missing`, None if it does not exist."""
        if key in self._found:
            return self._found[key]
        with self._guard(key):
            found: Any = self._group
            for part in key.split("/"):
                if missing and (not isinstance(found, h5py.Group) or part not in found):
                    return None  # `in` follows no link
                found = self._step(found, part, LINKS, key)
        self._found[key] = found
        return found

    def _step(self, group: Any, name: str, left: int, key: str) -> Any:
        """Resolve one name, never out of the file."""
        link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            raise KeyError(f"there is no '{one_line(name, 80)}'")
        if isinstance(link, h5py.HardLink):
            return group[name]
        if not isinstance(link, h5py.SoftLink):
            raise UserError(
                f"{self.where(key)} is a link to another file, which is not followed. Copy the data into this "
                "file."
            )
        if not left:
            raise UserError(f"{self.where(key)} is a link in a chain of more than {LINKS}.")
        found = self._root if link.path.startswith("/") else group
        for part in link.path.split("/"):
            if part not in ("", "."):
                found = self._step(found, part, left - 1, key)
        return found

    def _dataset(self, key: str) -> h5py.Dataset:
        found = self._find(key)
        if not isinstance(found, h5py.Dataset):
            raise UserError(f"{self.where(key)} is not an array.")
        with self._guard(key):  # before its shape is read, which would open other files
            plan = found.id.get_create_plist()
            if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
                raise UserError(
                    f"{self.where(key)} has its data in other files, which are not opened. Copy the data into "
                    "this file."
                )
            for i in range(plan.get_nfilters()):
                if (number := plan.get_filter(i)[0]) not in FILTERS:
                    raise UserError(
                        f"{self.where(key)} is compressed with filter {number}, which is not supported. "
                        "Convert it: h5repack -f GZIP=4."
                    )
        return found

    def _check_size(self, key: str, data: h5py.Dataset) -> None:
        size, stored = prod(data.shape) * data.dtype.itemsize, data.id.get_storage_size()
        if size and not stored:
            raise UserError(
                f"{self.where(key)} was never written: the file holds only its shape, {data.shape}."
            )
        if size > MAX_BYTES or size > max(FREE, RATIO * min(stored, self._path.stat().st_size)):
            raise UserError(
                f"{self.where(key)} is declared with {size:,} bytes, of which the file holds {stored:,}. At most "
                f"{MAX_BYTES:,} bytes are read, and above {FREE:,} at most {RATIO} times what is stored."
            )
        block = prod(data.chunks) * data.dtype.itemsize if data.chunks else 0
        if block > max(FREE, size):
            raise UserError(f"{self.where(key)} is stored in blocks of {block:,} bytes; it has {size:,}.")

    def _check_blocks(self, key: str, data: h5py.Dataset) -> None:
        """Check that every block exists and none unpacks to more than its declared size."""
        if not data.chunks or not data.size:
            return
        wanted = prod(-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True))
        nominal = prod(data.chunks) * data.dtype.itemsize
        plan = data.id.get_create_plist()
        filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        suspects: list[tuple[int, ...]] = []
        seen = 0

        def visit(block: Any) -> None:
            nonlocal seen
            seen += 1
            if block.size * DEFLATE > FREE:
                suspects.append(block.chunk_offset)

        data.id.chunk_iter(visit)
        if seen < wanted:
            raise UserError(f"{self.where(key)}: {seen} of its {wanted} blocks were written.")
        if h5py.h5z.FILTER_DEFLATE not in filters:
            return
        if filters.count(h5py.h5z.FILTER_DEFLATE) > 1:
            raise UserError(
                f"{self.where(key)} is compressed with gzip twice. Convert it: h5repack -f GZIP=4."
            )
        for offset in suspects:
            skipped, packed = data.id.read_direct_chunk(offset)
            if skipped & (1 << filters.index(h5py.h5z.FILTER_DEFLATE)):
                continue
            stream = zlib.decompressobj()
            try:
                stream.decompress(packed, nominal + 4)  # 4: a checksum
            except zlib.error as error:
                raise UserError(f"{self.where(key)} is damaged at {offset} ({error}).") from None
            if stream.unconsumed_tail:
                raise UserError(
                    f"{self.where(key)}: the block at {offset} unpacks to more than {nominal:,} bytes."
                )


def _decoded(value: Any, where: str) -> Any:
    try:
        text = value.decode() if isinstance(value, bytes) else value
        if isinstance(text, str):
            text.encode()
    except UnicodeError:
        raise UserError(f"{where} is not UTF-8 text.") from None
    return text


def _first(error: BaseException) -> str:
    lines = str(error.args[-1] if error.args else error).strip().splitlines()
    return one_line(lines[0], 300).rstrip(".") if lines else type(error).__name__
