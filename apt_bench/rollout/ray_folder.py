"""The folder of a run's own Ray: short, private, and removed afterwards, whichever process is killed."""

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
"""The longest path that Ray gives a socket in its folder. A socket's path has at most 107 bytes."""


@contextmanager
def reaped_folder() -> Iterator[str]:
    """A folder for Ray's files. When this process ends, a separate one kills the processes that still use the folder,
    and removes it."""
    sweep()
    folder, handle = short_folder()
    reaper = subprocess.Popen(
        [sys.executable, "-I", "-S", Path(__file__).with_name("reaper.py"), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C must not end it
        pass_fds=() if handle is None else (handle,),  # the lock lasts as long as either of the two
        cwd="/",
    )
    try:
        yield folder
    finally:
        assert reaper.stdin
        reaper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it finishes by itself
            reaper.wait(30)
        if handle is not None:
            os.close(handle)


def homes() -> list[str]:
    """Parent folders to try, in order."""
    return list(
        dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", f"/run/user/{os.getuid()}", "/dev/shm"])
    )


def short_folder() -> tuple[str, int | None]:
    """Make a folder in which Ray can make its sockets, in TMPDIR unless that path is too long.

    Returns:
        The folder, readable by this user only, and a handle that holds its lock (None where there are no locks).

    Raises:
        RayLost: No such folder can be made.
    """
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
        f"Ray needs a folder for its sockets, and none of {', '.join(homes())} can be used: {why}. Set TMPDIR to a "
        "folder with a short path (at most 20 bytes), or use --workers 0."
    )


def _try_socket(folder: str) -> None:
    """Raises OSError where the folder's path is too long for Ray's sockets, or its file system has no sockets."""
    path = os.path.join(folder, SOCKET.replace("/", "-"))
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)
    os.unlink(path)


def sweep() -> None:
    """Remove the folders that killed runs left behind: nothing holds their lock, and no process has a file open
    there."""
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
