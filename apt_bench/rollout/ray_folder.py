"""The folder of a run's own Ray: short, private, and gone afterwards, whatever is killed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apt_bench.core.errors import RayLost
from apt_bench.core.files import try_remove
from apt_bench.core.temporary_folders import lock
from apt_bench.rollout.reaper import holders

PREFIX = "apt-bench-ray-"
SOCKET = "r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
"""The longest name that Ray gives a socket below its folder. A socket's path has at most 107 bytes."""


@contextmanager
def reaped_folder() -> Iterator[str]:
    """A folder for Ray's files. A process of its own removes it, and whoever still uses it, when this one is gone."""
    sweep()
    folder, handle = short_folder()
    reaper = subprocess.Popen(
        [sys.executable, "-I", "-S", Path(__file__).with_name("reaper.py"), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
        pass_fds=() if handle is None else (handle,),  # the lock lasts as long as either of the two
        cwd="/",
    )
    try:
        yield folder
    finally:
        assert reaper.stdin
        reaper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on by itself
            reaper.wait(30)
        if handle is not None:
            os.close(handle)


def homes() -> list[str]:
    """Where the folder may lie."""
    return list(
        dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", f"/run/user/{os.getuid()}", "/dev/shm"])
    )


def short_folder() -> tuple[str, int | None]:
    """A new folder that only this user can read, below which Ray's sockets can be made, and a handle that holds its
    lock (None where there are no locks): in TMPDIR unless that is too long. Raises RayLost where there is none."""
    why: OSError | None = None
    for home in homes():
        try:
            made = tempfile.mkdtemp(prefix="apt-bench-new-", dir=home)
        except OSError as error:
            why = why or error
            continue
        handle = lock(Path(made))
        folder = os.path.join(home, PREFIX + made[-8:])
        try:
            _try_socket(made)
            os.rename(made, folder)  # locked before `sweep` can see it
            return folder, handle
        except OSError as error:
            why = why or error
            os.rmdir(made)
            if handle is not None:
                os.close(handle)
    raise RayLost(
        f"Ray needs a folder that takes sockets, and none of {', '.join(homes())} does: {why}. Set TMPDIR to a short "
        "one (at most 20 bytes), or use --workers 0."
    )


def _try_socket(folder: str) -> None:
    """Raises OSError where the folder's path is too long for Ray's sockets, or its file system takes none."""
    path = os.path.join(folder, SOCKET.replace("/", "-"))
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)
    os.unlink(path)


def sweep() -> None:
    """Remove the folders of earlier runs that a kill left: their driver and its reaper are gone, for nobody holds the
    lock, and no process has a file open there."""
    for home in homes():
        with contextlib.suppress(OSError):
            for folder in Path(home).glob(f"{PREFIX}*"):
                _sweep_one(folder)


def _sweep_one(folder: Path) -> None:
    if folder.is_symlink() or folder.lstat().st_uid != os.getuid():
        return
    handle = lock(folder)
    if handle is None:
        return
    try:
        if not holders(str(folder)):
            try_remove(folder)
    finally:
        os.close(handle)
