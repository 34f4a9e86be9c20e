"""Writes the folder of a report or a comparison: it replaces an earlier one completely, or leaves it unchanged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apt_bench
from apt_bench.core.errors import UserError
from apt_bench.core.files import PART, exclusive, open_regular, read_json, reason, try_remove, write_json

PAGE = "report.html"
INDEX = "index.html"
MANIFEST, COMPARISON, SITE = "report-files.json", "comparison-files.json", "site-files.json"
"""Manifests: they list the files of a report, a comparison or a site. Only listed files are ever replaced or
removed."""

ENTRIES = {
    MANIFEST: ("tables", "figures", "videos", "browser", PAGE),
    COMPARISON: ("tables", "figures"),
    SITE: ("runs", "compare", "tables", "figures", INDEX),
}
"""What each of them may contain, in the order in which it is put in place; the manifest comes last."""

WORK = f".report{PART}"
NEW, OLD = "new", "old"
"""Inside `WORK`, while a report is written: its files, and the files that they replace."""


@contextmanager
def replaced(out: Path, manifest: str = MANIFEST) -> Iterator[Path]:
    """Give a new folder to write a report, a comparison or a site into. Put its files into `out` at the end of the
    block.

    They replace the files of an earlier report in `out`, and only those. If the block raises an exception, `out` stays
    unchanged.

    Args:
        out: The folder of the report.
        manifest: `MANIFEST` for a report, `COMPARISON` for a comparison, `SITE` for a site.

    Yields:
        The folder to write into.

    Raises:
        UserError: `out` holds other files, or cannot be written.
    """
    created = not os.path.lexists(out)
    what = manifest.partition("-")[0]
    try:
        with exclusive(out, "apt-bench compare" if manifest == COMPARISON else "apt-bench report"):
            work = out / WORK
            ours = _restore(out, manifest)
            try:
                (work / NEW).mkdir(parents=True)
                yield work / NEW
                files = sorted(p.relative_to(work / NEW).as_posix() for p in _files(work / NEW))
                write_json(work / NEW / manifest, {"apt_bench": apt_bench.__version__, "files": files})
                _swap(out, ours, manifest)
            finally:
                try_remove(work)
    except OSError as error:
        place = error.filename or out
        raise UserError(
            f"Cannot write the {what} to {out}: {reason(error)} ({place}). Give {_option(manifest)} another folder."
        ) from None
    finally:
        if created:
            with suppress(OSError):  # it is not empty: the report was written
                out.rmdir()


def _restore(out: Path, manifest: str) -> frozenset[str]:
    """The files of the report in `out`, after undoing what a killed command left there."""
    new, old = out / WORK / NEW, out / WORK / OLD
    ours: frozenset[str] = frozenset()
    begun = next((m for m in ENTRIES if os.path.lexists(new / m)), "")
    if old.is_dir() and begun:  # a command was killed while it put its files in place
        ours = _listed(new / begun)
        for entry in (*ENTRIES[begun], begun):
            if os.path.lexists(old / entry):
                try_remove(out / entry)
                (old / entry).rename(out / entry)
    try_remove(out / WORK)
    present = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    if os.path.lexists(out / manifest):
        return ours | _listed(out / manifest)
    if not present or (manifest == MANIFEST and _older(out)):
        return ours | {PAGE}
    raise UserError(
        f"{out} is not empty and holds no {manifest.partition('-')[0]} (it contains '{present[0]}'). Give "
        f"{_option(manifest)} a new or an empty folder."
    )


def _listed(manifest: Path) -> frozenset[str]:
    files = read_json(manifest).get("files")
    if not isinstance(files, list):
        raise UserError(
            f"{manifest} is damaged: it has no list 'files'. Give {_option(manifest.name)} another folder."
        )
    return frozenset(map(str, files))


def _option(manifest: str) -> str:
    """The option that names the folder."""
    return "--publish" if manifest == SITE else "--out"


def _older(out: Path) -> bool:
    """Whether an older version wrote a report here, which had no manifest to list its files."""
    try:
        with open_regular(out / PAGE) as file:
            return b'<meta name="generator" content="apt-bench ' in file.read(1000)
    except OSError:
        return False


def _swap(out: Path, ours: frozenset[str], manifest: str) -> None:
    """Replace the old entries by the new ones.

    Other files in the folder stay. UserError if one has the name of a new file. If anything fails, the folder stays
    unchanged.
    """
    work = out / WORK
    for path in (p for e in ENTRIES[manifest] for p in _files(out / e)):
        name = path.relative_to(out)
        if name.as_posix() in ours:
            continue
        if os.path.lexists(work / NEW / name):
            if _older(out):
                continue
            raise UserError(
                f"{path} does not belong to an earlier {manifest.partition('-')[0]}. Move it, or give "
                f"{_option(manifest)} another folder."
            )
        (work / NEW / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, work / NEW / name, follow_symlinks=False)
    (work / OLD).mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for entry in (*ENTRIES[manifest], manifest):
            for source, target in ((out, work / OLD), (work / NEW, out)):
                if os.path.lexists(source / entry):
                    (source / entry).rename(target / entry)
                    moved.append((source / entry, target / entry))
    except OSError:
        for source, target in reversed(moved):
            target.rename(source)
        raise


def _files(path: Path) -> list[Path]:
    """The files in a folder, or the file itself. A link counts as a file."""
    if path.is_symlink() or not path.is_dir():
        return [path] if os.path.lexists(path) else []
    return [Path(folder) / name for folder, folders, names in os.walk(path) for name in
            [*names, *(f for f in folders if (Path(folder) / f).is_symlink())]]  # fmt: skip
