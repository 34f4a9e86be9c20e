"""One way to read demonstrations, whatever file they are in."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from apt_bench.core.errors import UserError
from apt_bench.demos.format import DemoInfo, Demonstration
from apt_bench.demos.hdf5 import index_hdf5
from apt_bench.demos.lerobot import index_lerobot

SUFFIXES = (".hdf5", ".h5")


class Entry(Protocol):
    """A demonstration in a file, not read yet."""

    @property
    def info(self) -> DemoInfo:
        """What is known without reading it."""
        ...

    def load(self, cameras: Iterable[str] | None = None) -> Demonstration:
        """Read it; `cameras`: only these images (None = all, () = none)."""
        ...


@dataclass(frozen=True)
class Demos:
    """An index of demonstrations. `demos[i]` reads one from its file, with the images of `cameras` (None = all)."""

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
        """What is known of each without reading it."""
        return [e.info for e in self.entries]

    @property
    def successes(self) -> Demos:
        """The same without failures: what can be imitated."""
        return dataclasses.replace(self, entries=tuple(e for e in self.entries if e.info.success))

    def only(self, cameras: Iterable[str]) -> Demos:
        """The same with fewer images; none, if `cameras` is empty."""
        return dataclasses.replace(self, cameras=tuple(cameras))

    def split(self, held_out: float) -> tuple[Demos, Demos]:
        """(training, held out): this fraction, rounded, and at least one of two or more, by the hash of the episodes'
        names, so that the order of files does not matter. Raises UserError outside [0, 1)."""
        if not 0 <= held_out < 1:
            raise UserError(f"The held-out fraction must lie in [0, 1), not {held_out}.")
        count = round(held_out * len(self)) or int(held_out > 0 and len(self) > 1)
        ranked = sorted(range(len(self)), key=lambda i: _hash(self.entries[i].info.episode))
        out = set(ranked[:count])
        parts = ([e for i, e in enumerate(self.entries) if (i in out) == held] for held in (False, True))
        train, test = (dataclasses.replace(self, entries=tuple(p)) for p in parts)
        return train, test

    @property
    def fingerprint(self) -> str:
        """16 hex digits: which episodes these are, how long, and in what state they ended."""
        return _hash("\n".join(sorted(f"{i.episode} {i.steps} {i.end_hash}" for i in self.infos)))[:16]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def open_demos(paths: Path | str | Sequence[Path | str], cameras: Iterable[str] | None = None) -> Demos:
    """Demonstrations in LIBERO's HDF5 layout (a file, or every file below a folder) or in LeRobotDataset v3 folders,
    ours or others'. An episode that is there twice counts once.

    Raises UserError for what is missing, truncated or in another layout.
    """
    several = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found: dict[str, Entry] = {}
    for path in map(Path, several):
        for entry in _entries(path):
            found.setdefault(entry.info.episode, entry)
    return Demos(tuple(found.values()), None if cameras is None else tuple(cameras))


def _entries(path: Path) -> list[Entry]:
    if not path.exists():
        raise UserError(f"No file or folder {path}. `apt-bench collect` makes demonstrations.")
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path} is neither HDF5 ({', '.join(SUFFIXES)}) nor a LeRobotDataset folder.")
        return list(index_hdf5(path))
    entries: list[Entry] = []
    if (path / "meta/info.json").is_file():
        entries += index_lerobot(path)
    for file in sorted(f for suffix in SUFFIXES for f in path.rglob(f"*{suffix}")):
        entries += index_hdf5(file)
    if not entries:
        raise UserError(
            f"{path} holds no demonstrations: neither HDF5 files nor a LeRobotDataset's meta/info.json."
        )
    return entries
