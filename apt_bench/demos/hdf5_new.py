"""HDF5 files as they are written: whole or not at all, also where the disk is full."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from apt_bench.core.files import PART, try_remove
from apt_bench.demos.hdf5_file import FAILURES


class _Part(io.RawIOBase):
    """A file that HDF5 writes through. The library dies (a segmentation fault) or goes on silently where a write
    fails; so a failure is kept here, the library told that all is well, and the file thrown away."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115
        self.failure: OSError | None = None
        self._unwritten: dict[int, bytes] = {}  # what the library may read again

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        at, view = self._file.tell(), memoryview(buffer).cast("B")
        got = self._file.readinto(view) or 0
        if self.failure:
            kept = self._unwritten.get(at, b"")[: len(view)]
            view[: len(kept)] = kept
            view[max(got, len(kept)) :] = bytes(len(view) - max(got, len(kept)))
            got = len(view)
        return got

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        at, done = self._file.tell(), 0
        try:
            while done < len(view) and not self.failure:
                done += self._file.write(view[done:]) or 0
        except OSError as error:
            self.failure = error
        if self.failure and len(view) <= 2**20:
            self._unwritten[at] = bytes(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def flush(self) -> None:
        """Nothing is buffered."""

    def finish(self) -> None:
        """Bring it to the disk. Raises the OSError that was met first."""
        if not self.failure:
            os.fsync(self._file.fileno())
        if self.failure:
            raise self.failure

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """A file to fill, which takes the place of `path` when the block ends well, and is gone else.

    Raises OSError where it cannot be written."""
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
