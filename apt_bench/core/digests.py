"""SHA-256 digests of a folder's files, stored beside them to detect damage."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from apt_bench.core.errors import UserError
from apt_bench.core.files import inside, read_json, reason, sha256, write_json

DIGESTS = "digests.json"
"""Name of the file of digests: `{file: SHA-256 in hex}`."""


def write_digests(folder: Path) -> None:
    """Write the digests of all files in a folder into its `digests.json`. Raises OSError."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != DIGESTS)
    write_json(folder / DIGESTS, {p.name: sha256(p) for p in files})


def check_digests(folder: Path, only: Iterable[str] | None = None) -> bool:
    """Check a folder's files against its `digests.json`.

    Args:
        folder: The folder.
        only: Names of the files to check; by default all that have a digest.

    Returns:
        Whether the folder has a `digests.json`.

    Raises:
        UserError: A file is missing or differs from what was written, for example after a copy that ended early.
    """
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
