"""Reading of demonstrations from files and folders of any supported format."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from apt_bench.core.errors import UserError
from apt_bench.core.files import reason
from apt_bench.core.text import say
from apt_bench.demos.demonstration import DemoInfo, Demonstration
from apt_bench.demos.duplicates import Entry, with_own_names, without_doubles
from apt_bench.demos.hdf5_reader import index_hdf5
from apt_bench.demos.lerobot_layout import INFO
from apt_bench.demos.lerobot_reader import index_lerobot

SUFFIXES = (".hdf5", ".h5")
CLUTTER = (".", "~$", "__MACOSX", "Thumbs.db", "desktop.ini")
"""Prefixes of files and folders that operating systems create."""


@dataclass(frozen=True)
class Demos:
    """An index of demonstrations. `demos[i]` reads one from its file.

    Attributes:
        entries: The demonstrations.
        cameras: Cameras whose images are read; None = all.
    """

    entries: tuple[Entry, ...]
    cameras: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Demonstration:
        return self.entries[index].load(self.cameras)

    def __iter__(self) -> Iterator[Demonstration]:
        return (self[i] for i in range(len(self)))

    @property
    def infos(self) -> list[DemoInfo]:
        """Metadata of all demonstrations; their arrays are not read."""
        return [e.info for e in self.entries]

    @property
    def successes(self) -> Demos:
        """The successful demonstrations only."""
        return dataclasses.replace(self, entries=tuple(e for e in self.entries if e.info.success))

    def only(self, cameras: Iterable[str]) -> Demos:
        """The same demonstrations with the images of `cameras` only; empty = no images."""
        return dataclasses.replace(self, cameras=tuple(cameras))

    def split(self, held_out: float) -> tuple[Demos, Demos]:
        """Split by the hash of the episodes' names, so that the order of files does not matter.

        Args:
            held_out: Fraction to hold out, rounded; at least one demonstration of two or more.

        Returns:
            Training and held-out demonstrations.

        Raises:
            UserError: The fraction is outside [0, 1).
        """
        if not 0 <= held_out < 1:
            raise UserError(f"The held-out fraction is {held_out}; it must be in [0, 1).")
        count = round(held_out * len(self)) or int(held_out > 0 and len(self) > 1)
        ranked = sorted(range(len(self)), key=lambda i: _hash(self.entries[i].info.episode))
        out = set(ranked[:count])
        parts = ([e for i, e in enumerate(self.entries) if (i in out) == held] for held in (False, True))
        train, test = (dataclasses.replace(self, entries=tuple(p)) for p in parts)
        return train, test

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the episodes' names, lengths and final states."""
        return _hash("\n".join(sorted(f"{i.episode} {i.steps} {i.end_hash}" for i in self.infos)))[:16]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def open_demos(paths: Path | str | Sequence[Path | str], cameras: Iterable[str] | None = None) -> Demos:
    """Open demonstrations in LIBERO's HDF5 layout and in LeRobotDataset v3 folders, whoever made them.

    Of demonstrations that are equal byte for byte, one is kept; a note on stderr reports the number of copies.
    Different demonstrations of the same name get a digest of their content appended to it.

    Args:
        paths: Files, dataset folders, or folders that are searched.
        cameras: Cameras whose images are read; None = all.

    Returns:
        An index; arrays are read when a demonstration is accessed.

    Raises:
        UserError: A path is missing, truncated or in another layout.
    """
    several = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found: list[Entry] = []
    seen: set[str] = set()
    for path in map(Path, several):
        found += _entries(path, seen)
    kept = without_doubles(found)
    if copies := len(found) - len(kept):
        say(f"{copies} of {len(found)} demonstrations are byte-for-byte copies of others. Each counts once.")
    return Demos(tuple(with_own_names(kept)), None if cameras is None else tuple(cameras))


def _entries(path: Path, seen: set[str]) -> list[Entry]:
    if not path.exists():
        raise UserError(f"No file or folder {path}. Collect demonstrations with `apt-bench collect`.")
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is neither HDF5 ({', '.join(SUFFIXES)}) nor a LeRobotDataset folder.")
    places = list(recordings(path))
    if not places:
        raise UserError(f"{path} holds no demonstrations: no HDF5 file and no LeRobotDataset ({INFO}).")
    entries: list[Entry] = []
    for place in places:
        if (real := os.path.realpath(place)) not in seen:  # skip links to files that were read already
            seen.add(real)
            entries += index_lerobot(place) if place.is_dir() else index_hdf5(place)
    return entries


def recordings(path: Path) -> Iterator[Path]:
    """Every HDF5 file and every LeRobotDataset folder at or below `path`, ordered by name.

    Links are followed, into each folder once. Files and folders that operating systems create are skipped.

    Raises:
        UserError: A folder cannot be read.
    """
    if not path.is_dir():
        yield path
        return

    def refuse(error: OSError) -> None:
        raise UserError(f"Cannot read the folder {error.filename}: {reason(error)}.")

    entered: set[str] = set()
    for folder, below, files in os.walk(path, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in entered else sorted(n for n in below if not n.startswith(CLUTTER))
        if real in entered:
            continue
        entered.add(real)
        if (Path(folder) / INFO).is_file():
            yield Path(folder)
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith(CLUTTER):
                yield Path(folder) / name
