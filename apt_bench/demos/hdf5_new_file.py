"""Writing of HDF5 files: completely or not at all, even if the disk is full."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from apt_bench.core.files import PART, try_remove
from apt_bench.demos.hdf5_safe_file import FAILURES


class _Part(io.FileIO):
    """A file that the HDF5 library writes through.

    After a failed write the library crashes (a segmentation fault) or continues silently. The failure is therefore
    stored here, the library is told that the write succeeded, and the file is deleted afterwards.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.failure: OSError | None = None
        self._unwritten: dict[int, bytes] = {}  # blocks that the library may read again

    def readinto(self, buffer: Any) -> int:
        at, view = self.tell(), memoryview(buffer).cast("B")
        got = super().readinto(view) or 0
        if self.failure:
            kept = self._unwritten.get(at, b"")[: len(view)]
            view[: len(kept)] = kept
            view[max(got, len(kept)) :] = bytes(len(view) - max(got, len(kept)))
            got = len(view)
        return got

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        at, done = self.tell(), 0
        try:
            while done < len(view) and not self.failure:
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.failure = error
        if self.failure and len(view) <= 2**20:
            self._unwritten[at] = bytes(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def finish(self) -> None:
        """Flush the file to the disk. Raises the first OSError that occurred."""
        if not self.failure:
            os.fsync(self.fileno())
        if self.failure:
            raise self.failure


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Create a file to fill. It replaces `path` when the block ends without an error, and is deleted otherwise.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        sink = _Part(part)
        try:
            with h5py.File(sink, "w") as file:
                yield file
            sink.finish()
        except FAILURES:
            if sink.failure:
                raise sink.failure from None
            raise
        finally:
            sink.close()
        part.replace(path)
    finally:
        try_remove(part)
