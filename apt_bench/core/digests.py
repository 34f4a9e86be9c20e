"""SHA-256 digests of a folder's files, kept beside them: whether they still are what was written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from apt_bench.core.errors import UserError
from apt_bench.core.files import inside, read_json, reason, sha256, write_json

DIGESTS = "digests.json"
"""Name of the file of digests: `{file: SHA-256 in hex}`."""


def write_digests(folder: Path) -> None:
    """Note the digest of every file in this folder. Raises OSError."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != DIGESTS)
    write_json(folder / DIGESTS, {p.name: sha256(p) for p in files})


def check_digests(folder: Path, only: Iterable[str] | None = None) -> bool:
    """Whether the folder has digests. only: check no other files than these.

    Raises UserError where a file is missing or is not what was written: a bit flipped, a copy ended early."""
    if not (folder / DIGESTS).exists():
        return False
    wanted = read_json(folder / DIGESTS)
    for name in wanted if only is None else only:
        path = inside(folder, name)
        try:
            found = sha256(path)
        except OSError as error:
            raise UserError(f"{path} is missing or damaged: {reason(error)}.") from None
        if found != wanted.get(name):
            raise UserError(f"{path} is damaged: its SHA-256 digest is not the one in {DIGESTS}.")
    return True
