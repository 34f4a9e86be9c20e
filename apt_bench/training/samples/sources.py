"""Where demonstrations come from: local paths and datasets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apt_bench.core.errors import UserError
from apt_bench.core.files import reason


def find_all(names: Sequence[str]) -> list[Path]:
    """`find_data` of each name.

    Raises:
        UserError: Two names are the same data, which would be sampled twice as often.
    """
    paths, known = [find_data(name) for name in names], dict[Path, str]()
    for name, path in zip(names, paths, strict=True):
        if (other := known.setdefault(path.resolve(), name)) != name:
            raise UserError(
                f"Data '{other}' and '{name}' are the same. To sample a dataset more often, give it a weight."
            )
    return paths


def find_data(name: str) -> Path:
    """A local path, or the local copy of a dataset of the Hugging Face hub.

    Args:
        name: A path, or a hub id `owner/name`; an existing path takes precedence.

    Raises:
        UserError: It is not a path, or the dataset cannot be downloaded.
    """
    try:
        path = Path(name).expanduser()
        here = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a name too long, no such user
        raise UserError(f"{name!r} is not a path: {reason(error)}.") from None
    if here or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise UserError(
            f"'{name}' is neither a local file or folder nor a dataset that can be downloaded from the hub "
            f"({type(error).__name__}). Check the spelling, or download it elsewhere and give its path."
        ) from None
