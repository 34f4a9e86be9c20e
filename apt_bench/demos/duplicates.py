"""Duplicates: copies of a demonstration are dropped, different ones of the same name get distinct names."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from apt_bench.demos.demonstration import DemoInfo, Demonstration


class Entry(Protocol):
    """A demonstration in a file, without its arrays."""

    @property
    def info(self) -> DemoInfo:
        """Its metadata."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that `load` reads."""
        ...

    def load(self, cameras: Iterable[str] | None = None) -> Demonstration:
        """Read it with the images of `cameras` (None = all, () = none)."""
        ...

    def named(self, episode: str) -> Self:
        """The same under another name."""
        ...


E = TypeVar("E", bound=Entry)


def without_doubles(entries: Sequence[E]) -> list[E]:
    """Drop copies: demonstrations whose metadata, numbers and images are equal byte for byte, whatever their names.

    Numbers are read only where the metadata are equal, images only where the numbers are equal too.
    """
    copies: set[int] = set()
    for alike in _groups(range(len(entries)), lambda i: _facts(entries[i].info)):
        for close in _groups(alike, lambda i: numbers_digest(entries[i])):
            for same in _groups(close, lambda i: images_digest(entries[i])):
                copies |= {*sorted(same, key=lambda i: (entries[i].info.episode, i))[1:]}
    return [e for i, e in enumerate(entries) if i not in copies]


def with_own_names(entries: Sequence[E]) -> list[E]:
    """Give each demonstration a name of its own.

    A shared name gets a digest of the episode's content appended, which depends neither on folders nor on the order of
    files.
    """
    found = list(entries)
    for alike in _groups(range(len(found)), lambda i: found[i].info.episode):
        names = {i: numbers_digest(found[i])[:8] for i in alike}
        for close in _groups(alike, names.__getitem__):
            for i in close:
                names[i] += f"-{images_digest(found[i])[:8]}"
        for i in alike:
            found[i] = found[i].named(f"{found[i].info.episode}~{names[i]}")
    return found


def _groups(indices: Iterable[int], key: Callable[[int], str]) -> Iterator[list[int]]:
    """Groups of two or more indices that share a key."""
    found: dict[str, list[int]] = defaultdict(list)
    for i in indices:
        found[key(i)].append(i)
    return (group for group in found.values() if len(group) > 1)


def _facts(info: DemoInfo) -> str:
    return replace(info, episode="").to_json()


def numbers_digest(entry: Entry) -> str:
    """Hex digest of everything but the name and the images."""
    demo = entry.load(cameras=())
    arrays: dict[str, Any] = {"state": demo.state, "actions": demo.actions}
    arrays |= {"joints": demo.joints, "sim_states": demo.sim_states}
    for name, track in demo.cameras.items():
        arrays |= {f"{name} K": track.K, f"{name} pose": track.pose}
    return _digest(_facts(demo.info), arrays)


def images_digest(entry: Entry) -> str:
    """Hex digest of all images and segmentation labels."""
    demo = entry.load()
    labels = {f"{n} labels": a for n, a in demo.segmentation.items()}
    return _digest("\n".join(demo.segments), {**demo.images, **labels})


def _digest(text: str, arrays: Mapping[str, np.ndarray | None]) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        if (array := arrays[name]) is not None:
            found.update(f"\n{name} {array.dtype} {array.shape}\n".encode("utf-8", "backslashreplace"))
            found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
