"""Which simulator is imported: the hash of its code and assets, compared with the ones that scores are defined on.

The version in an installation's metadata does not prove what `import` loads. It may load another copy on `PYTHONPATH`
or in the working directory, an editable install, files that another distribution left in the same folder, or a file
that was edited in place. So the folders that `import` loads are hashed and compared with `suites/simulator.json`, which
`python -m apt_bench.core.pin_simulator` writes. The hash of a folder is cached in the user's cache folder until the
size or a time stamp of one of its files changes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from apt_bench.core.errors import UserError
from apt_bench.core.files import read_json, reason, write_json
from apt_bench.core.paths import cache_dir, data_dir
from apt_bench.core.text import say

PINS = "simulator.json"
NOT_INSTALLED = "not installed"
SAY_AFTER = 10.0
"""Seconds of hashing after which a message explains the delay."""

CODE_ONLY = ("bddl",)
"""Modules of which only `.py` files are hashed: their other files depend on the build tool and are not used."""

LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "libero": ("datasets",),  # LIBERO's script stores demonstrations there
    "robosuite": ("macros_private.py",),  # robosuite asks its users to make it; it is not used here
}

Listing = Mapping[str, str]
"""Path of each file in a folder -> SHA-256 in the format of an installation's RECORD."""


@dataclass(frozen=True)
class Tree:
    """A folder that is imported.

    `pinned`: its hash is in `suites/simulator.json`, or, for a version that is not there, in its own RECORD."""

    module: str
    path: str
    files: int
    sha256: str  # of the listing
    pinned: bool
    stamp: str  # changes with the size or a time of any file


@dataclass(frozen=True)
class Package:
    """An installed simulator package: the version in its metadata and the folders that are imported."""

    name: str
    version: str
    trees: tuple[Tree, ...]

    @property
    def label(self) -> str:
        """The version; with 12 hex digits of the code's hash if the code differs from that version: `0.1.1+4f2a...`."""
        foreign = [t.sha256 for t in self.trees if not t.pinned]
        return self.version + (
            f"+{hashlib.sha256(str(foreign).encode()).hexdigest()[:12]}" if foreign else ""
        )


def simulator(pins: Mapping[str, str]) -> tuple[Package, ...]:
    """Inspect the installed simulator packages.

    The first call on a machine takes some seconds (1.2 GB of files), later ones 20 ms.

    Args:
        pins: Package name -> version, as a suite pins them.
    """
    return tuple(_package(name, wanted) for name, wanted in pins.items())


def labels(pins: Mapping[str, str]) -> dict[str, str]:
    """`Package.label` by name, as stored in `protocol.json`."""
    return {p.name: p.label for p in simulator(pins)}


def describe(packages: Iterable[Package]) -> dict[str, Any]:
    """Describe simulator packages for `run.json`."""
    keys = ("path", "files", "sha256", "pinned")
    return {
        p.name: {
            "version": p.version,
            "modules": {t.module: {k: asdict(t)[k] for k in keys} for t in p.trees},
        }
        for p in packages
    }


def problems(pins: Mapping[str, str], packages: Iterable[Package]) -> list[str]:
    """One sentence part for each difference between the installed simulator and the pinned one; [] without any."""
    found = []
    for package in packages:
        wanted = pins[package.name]
        if package.version != wanted:
            found.append(f"defined on {package.name} {wanted}; here is {package.version}")
        found += [
            f"defined on {package.name} {wanted}; here the module '{tree.module}' is another, from "
            f"{tree.path or 'nowhere'}: {_what(tree)}"
            for tree in package.trees
            if not tree.pinned
        ]
    return found


def require(suite: str, pins: Mapping[str, str], unpinned: bool) -> list[str]:
    """Check that the installed simulator is the one that the suite pins.

    Args:
        suite: Name of the suite, for the message.
        pins: Package name -> version.
        unpinned: Return the differences instead of raising; the result is marked with them.

    Returns:
        The differences.

    Raises:
        UserError: There are differences and `unpinned` is False.
    """
    found = problems(pins, simulator(pins))
    if found and not unpinned:
        wanted = " ".join(f"{name}=={version}" for name, version in pins.items())
        raise UserError(
            f"Suite '{suite}' is {'; it is '.join(found)}. Scores depend on it. Install {wanted} (pip install "
            "--force-reinstall --no-deps) and nothing else that brings these modules, or run another protocol on "
            "purpose with --unpinned, which marks the result."
        )
    return found


def require_same(expected: Sequence[Package]) -> None:
    """Check that a worker process imports the same simulator as the command that started it.

    It may differ on another machine, with another PYTHONPATH, or after a policy has changed `sys.path`.

    Raises:
        UserError: The simulators differ.
    """
    for package in expected:
        _KNOWN.update({(t.module, t.path, t.stamp): (t.files, t.sha256) for t in package.trees})
    for package in expected:
        here = _package(package.name, package.version)
        if here.label != package.label:
            where = ", ".join(t.path for t in here.trees) or "nowhere"
            raise UserError(
                f"A worker on {socket.gethostname()} simulates with {package.name} {here.label} from {where}; the "
                f"command was started with {package.label}. Both must import the same: install it on every machine, "
                "and let no policy put another copy on sys.path."
            )


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions by package name.

    A package that is not installed has the version `not installed`. A package that is imported from a folder other than
    the one it was installed to has that folder in its version."""
    found = {}
    for name in packages:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            found[name] = NOT_INSTALLED
            continue
        found[name] = distribution.version
        places = roots(name)
        home = Path(str(distribution.locate_file(name)))
        if places and home.exists() and not any(p.samefile(home) for p in places):
            found[name] += f" (but imported from {places[0]})"
    return found


def roots(module: str) -> list[Path]:
    """The folders, or the one file, that `import module` loads or has loaded."""
    loaded = sys.modules.get(module)
    try:
        spec = getattr(loaded, "__spec__", None) or importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return []
    if spec is None:
        return []
    places = list(spec.submodule_search_locations or ())
    return [Path(p) for p in places] or ([Path(spec.origin)] if spec.has_location and spec.origin else [])


@functools.cache
def on_record() -> dict[str, dict[str, list[str]]]:
    """Content of `suites/simulator.json`: `package version` -> module -> possible hashes (one per platform)."""
    path = data_dir("suites") / PINS
    record = read_json(path)
    for name, modules in record.items():
        if not isinstance(modules, dict) or not all(isinstance(hashes, list) for hashes in modules.values()):
            raise UserError(f"{path} is damaged at '{name}': expected lists of hashes by module.")
    return record


def _package(name: str, wanted: str) -> Package:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = NOT_INSTALLED
    record = on_record().get(f"{name} {version}")
    known = {module: tuple(hashes) for module, hashes in (record or {}).items()}
    if record is None:
        known = dict.fromkeys(on_record().get(f"{name} {wanted}", {}), ())
    if record is None and version != NOT_INSTALLED:  # not on record: compare with its own RECORD
        known = {m: (digest(listing),) for m, listing in installed(name).items() if m in known or not known}
    trees = [_tree(module, hashes) for module, hashes in known.items()]
    return Package(name, version, tuple(t for t in trees if t.path or version != NOT_INSTALLED))


def _tree(module: str, hashes: tuple[str, ...]) -> Tree:
    places = roots(module)
    if not places:
        return Tree(module, "", 0, "", False, "")
    path = os.pathsep.join(map(str, places))
    stamp = _stamp(module, tuple(places))
    key = (module, path, stamp)
    if key not in _KNOWN:
        _KNOWN[key] = _cached(key) or _hashed(key, places)
    files, sha256 = _KNOWN[key]
    return Tree(module, path, files, sha256, sha256 in hashes, stamp)


Key = tuple[str, str, str]
_KNOWN: dict[Key, tuple[int, str]] = {}
"""(module, path, stamp) -> number of files and hash of the listing."""


@functools.cache
def _stamp(module: str, places: tuple[Path, ...]) -> str:
    """Hash of the sizes and times of all files. Cached, as Python does not import a module twice."""
    lines = hashlib.sha256()
    for name, path in _files(module, places):
        with suppress(OSError):
            s = path.stat()
            lines.update(f"{name}\0{s.st_size}\0{s.st_mtime_ns}\0{s.st_ctime_ns}\n".encode(*_BYTES))
    return lines.hexdigest()


_BYTES = ("utf-8", "surrogateescape")


def _files(module: str, places: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Every file that is hashed, by its path relative to the import root."""
    for place in places:
        if place.is_file():
            yield place.name, place
        top = len(str(place)) + 1
        for folder, folders, files in os.walk(place):
            inside = folder[top:].replace(os.sep, "/")
            prefix = f"{module}/{inside}/" if inside else f"{module}/"
            folders[:] = sorted(f for f in folders if _counts(prefix + f, True))
            yield from ((prefix + f, Path(folder, f)) for f in sorted(files) if _counts(prefix + f))


def _counts(name: str, folder: bool = False) -> bool:
    """Whether a file belongs to a package: no caches, no hidden files. `name`: path relative to the import root."""
    module, *parts = name.split("/")
    if module in CODE_ONLY and not folder and not name.endswith(".py"):
        return False
    left_out = parts and parts[0] in LEFT_OUT.get(module, ())
    return not left_out and not any(p == "__pycache__" or p.startswith(".") for p in parts)


def _hash(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return f"unreadable: {reason(error)}"
    return base64.urlsafe_b64encode(found).rstrip(b"=").decode()


def listing_of(module: str, places: Sequence[Path]) -> Listing:
    """Hash all files of the folders that are imported. Of two files with one name the first is used."""
    files: dict[str, Path] = {}
    for name, path in _files(module, places):
        files.setdefault(name, path)
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(files, pool.map(_hash, files.values()), strict=True))


def digest(listing: Listing) -> str:
    """SHA-256 of a listing, hex."""
    lines = "".join(f"{name} {sha}\n" for name, sha in sorted(listing.items()))
    return hashlib.sha256(lines.encode(*_BYTES)).hexdigest()


def _hashed(key: Key, places: Sequence[Path]) -> tuple[int, str]:
    notice = threading.Timer(SAY_AFTER, say, [f"hashing {key[1]}, which happens once per installation"])
    notice.daemon = True
    notice.start()
    try:
        listing = listing_of(key[0], places)
    finally:
        notice.cancel()
    found = len(listing), digest(listing)
    if path := _cache_file(key):
        with suppress(OSError):  # the next process hashes it again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"stamp": key[2], "files": found[0], "sha256": found[1]})
    return found


def _cached(key: Key) -> tuple[int, str] | None:
    path = _cache_file(key)
    try:
        entry = read_json(path) if path and path.is_file() else {}
    except (UserError, OSError):
        return None
    files, sha256 = entry.get("files"), entry.get("sha256")
    whole = entry.get("stamp") == key[2] and isinstance(files, int) and isinstance(sha256, str)
    return (files, sha256) if whole else None  # type: ignore[return-value]


def _cache_file(key: Key) -> Path | None:
    folder = cache_dir()
    name = hashlib.sha256("\0".join(key[:2]).encode(*_BYTES)).hexdigest()[:16]
    return folder / "simulator" / f"{key[0]}-{name}.json" if folder else None


def installed(name: str) -> dict[str, dict[str, str]]:
    """The listings in an installation's RECORD, by module."""
    try:
        return by_module(metadata.distribution(name).read_text("RECORD") or "")
    except metadata.PackageNotFoundError:
        return {}


def by_module(record: str) -> dict[str, dict[str, str]]:
    """The listings in the text of a RECORD, by module."""
    found: dict[str, dict[str, str]] = {}
    for line in record.splitlines():
        name, _, sha = line.rpartition(",")[0].rpartition(",sha256=")
        name = name.strip('"').replace('""', '"')
        module, slash, _ = name.partition("/")
        if slash and sha and module.isidentifier() and _counts(name):
            found.setdefault(module, {})[name] = sha
    return found


def recorded(module: str) -> dict[str, dict[str, str]]:
    """The listings of a module by installation folder, merged over the RECORDs of all packages there."""
    found: dict[str, dict[str, str]] = {}
    for distribution in metadata.distributions():
        text = distribution.read_text("RECORD") or ""
        if f"{module}/" in text and (listing := by_module(text).get(module)):
            found.setdefault(str(distribution.locate_file("")), {}).update(listing)
    return found


def _what(tree: Tree) -> str:
    """Describe how a folder differs from an installation whose hash is on record."""
    if not tree.path:
        return "it cannot be imported"
    hashes = {h for modules in on_record().values() for h in modules.get(tree.module, ())}
    meant = next((found for found in recorded(tree.module).values() if digest(found) in hashes), None)
    if meant is None:
        return f"its {tree.files} files have the hash {tree.sha256[:12]}, which is not on record"
    here = listing_of(tree.module, [Path(p) for p in tree.path.split(os.pathsep)])
    kinds = {
        "changed": [n for n in here if n in meant and here[n] != meant[n]],
        "missing": [n for n in meant if n not in here],
        "added": [n for n in here if n not in meant],
    }
    return ", ".join(f"{len(n)} {kind} ({_some(n)})" for kind, n in kinds.items() if n)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
