"""The user's own modules, sent to the machines of a cluster that do not see the driver's folders."""

from __future__ import annotations

import atexit
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from apt_bench.core.config import load_object
from apt_bench.core.errors import UserError
from apt_bench.core.module_search_path import user_folders
from apt_bench.core.temporary_folders import temporary_folder
from apt_bench.policies.registry import PolicyRef

FILE_BYTES, DATA_BYTES = 10**6, 64 * 10**6
"""Data files of a package are sent with it if they have at most this size each, and this size in all."""


@dataclass(frozen=True)
class UserCode:
    """Modules that were imported from the user's own folders, and files that the policy's arguments name.

    Args:
        files: Path below a search folder -> the file's path on the driver, and its content.
        paths: Argument of the policy -> the absolute path of the driver's file or folder that it names.
    """

    files: Mapping[str, tuple[str, bytes]]
    paths: Mapping[str, str]

    def install(self) -> None:
        """Let these modules be imported in this process. They are written to a temporary folder unless this machine has
        the same files at the same paths."""
        if all(_content(path) == content for path, content in self.files.values()):
            return
        kept = ExitStack()
        atexit.register(kept.close)
        folder = kept.enter_context(temporary_folder("code"))
        for name, (_, content) in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        sys.path.append(str(folder))

    def explain(self, message: str) -> str:
        """Add to an error message what this machine lacks."""
        where = f"machine '{platform.node()}' of the Ray cluster"
        missing = [
            f"{path} (argument '{name}')" for name, path in self.paths.items() if not os.path.exists(path)
        ]
        if missing:
            message += (
                f" The {where} does not have {', '.join(missing)}. Put it at the same path on every machine, use a "
                "disk that all of them share, or give a checkpoint's name on the hub (owner/name)."
            )
        elif "Cannot import" in message:
            message += f" This happened on the {where}. Install the same packages on every machine."
        return message


def collect_user_code(ref: PolicyRef, env: str, home: str) -> UserCode:
    """Collect the modules that the policy and the environment have imported from the user's own folders.

    Args:
        ref: The policy.
        env: The environment as "module:Class".
        home: The working directory of the driver.
    """
    for target in (ref.policy, env):
        with suppress(UserError):  # where it is used, the error is reported
            load_object(target)
    files: dict[str, tuple[str, bytes]] = {}
    folders = [Path(folder) for folder in user_folders(home)]
    for top in sorted({name.partition(".")[0] for name in sys.modules} - {"apt_bench", "__main__"}):
        for path, folder in _files(top, folders):
            files[path.relative_to(folder).as_posix()] = (str(path), path.read_bytes())
    texts = {name: value for name, value in ref.args.items() if isinstance(value, str) and value}
    return UserCode(files, {name: os.path.abspath(t) for name, t in texts.items() if os.path.exists(t)})


def _files(top: str, folders: list[Path]) -> Iterator[tuple[Path, Path]]:
    """The files of a module of the user, each with its search folder; none where an installed module has this name."""
    module = sys.modules.get(top)
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    real = {os.path.realpath(place) for place in places if place}
    for folder in folders:
        if os.path.realpath(folder / f"{top}.py") in real:
            yield folder / f"{top}.py", folder
        elif os.path.realpath(folder / top) in real:
            left = DATA_BYTES
            for path in sorted((folder / top).rglob("*")):
                inside = path.relative_to(folder).parts
                if not path.is_file() or any(p.startswith(".") or p == "__pycache__" for p in inside):
                    continue
                size = path.stat().st_size
                if path.suffix != ".py" and (size > FILE_BYTES or (left := left - size) < 0):
                    continue
                yield path, folder


def _content(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None
