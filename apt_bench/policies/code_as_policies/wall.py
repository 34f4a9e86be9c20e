"""What contains the process that runs a model's code: a seccomp filter, resource limits and an empty root directory.

The child process calls `close_in` after it has imported everything, and before it runs any of the code. The parent
calls `missing`. This module imports the standard library only, because the child loads it by its path."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

ARCHITECTURES = {"x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}
"""Machine -> the architecture word of the filter (AUDIT_ARCH), and the number of the system call `seccomp`."""

ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "sigaltstack": (131, 132),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}
"""The system calls that the code may use, and their numbers on x86_64 and aarch64. All others fail with EPERM.

`read` and `write` work on the two pipes to the parent: no other descriptor is open, and none can be opened. `mmap` and
`mprotect` are restricted further: anonymous memory only, and never executable."""

NOBODY = 65534

_LOAD, _EQUAL, _BITS, _RETURN = (
    0x20,
    0x15,
    0x45,
    0x06,
)  # BPF: load a word, jump if equal, jump if a bit is set, return
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_PROT_EXEC, _MAP_ANONYMOUS = 4, 0x20
_SECCOMP_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_NEW_USER, _NEW_IPC, _NEW_NET = 0x10000000, 0x08000000, 0x40000000


def missing() -> str | None:
    """Why this machine cannot have the filter, or None. The kernel may still refuse it."""
    if sys.platform != "linux":
        return f"it needs seccomp of Linux, and this system is {sys.platform}"
    if platform.machine() not in ARCHITECTURES:
        return f"the filter has no table of system calls for {platform.machine()}"
    return None


def program(machine: str) -> bytes:
    """The filter as instructions of classic BPF (struct sock_filter), for a machine of `ARCHITECTURES`."""
    column = list(ARCHITECTURES).index(machine)
    number = {name: numbers[column] for name, numbers in ALLOWED.items()}

    def argument(index: int) -> tuple[int, int, int, int]:
        return _LOAD, 0, 0, _ARGUMENTS + 8 * index  # the low word, on little-endian machines

    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, ARCHITECTURES[machine][0]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 0, 6, number.pop("mmap")),
        argument(2),
        (_BITS, 3, 0, _PROT_EXEC),
        argument(3),
        (_BITS, 0, 1, _MAP_ANONYMOUS),
        allow,
        refuse,
        (_EQUAL, 0, 4, number.pop("mprotect")),
        argument(2),
        (_BITS, 1, 0, _PROT_EXEC),
        allow,
        refuse,
    ]
    for one in number.values():
        code += [(_EQUAL, 0, 1, one), allow]
    return b"".join(struct.pack("=HBBI", *one) for one in [*code, refuse])


def close_in(memory: int, cpu_seconds: int, parent: int, seccomp: bool) -> list[str]:
    """Restrict this process irrevocably.

    Args:
        memory: Address space, in bytes.
        cpu_seconds: CPU time of this process.
        parent: Process id of the parent; this process ends with it.
        seccomp: Install the filter, and check that it works.

    Returns:
        What was done, in words.

    Raises:
        OSError: The kernel refused the filter, or the filter does not work.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    empty = tempfile.mkdtemp()
    os.chdir(empty)
    os.rmdir(empty)  # the working directory is now an empty one that nobody can put a file into
    done = ["resource limits", "no new descriptors"]
    if sys.platform == "linux":
        done += _isolate(libc)
    if os.getuid() == 0:
        with suppress(OSError):  # some containers do not permit it
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            done.append("user nobody")
    if sys.platform == "linux":
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user would reset both
    if os.getppid() != parent:  # the parent ended before the line above
        os._exit(1)
    limits = {"AS": memory, "CPU": cpu_seconds, "FSIZE": 0, "CORE": 0, "NPROC": 0, "NOFILE": 0}
    for name, most in limits.items():
        if hasattr(resource, f"RLIMIT_{name}"):
            with suppress(ValueError, OSError):
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    os.closerange(0, 3)
    if seccomp:
        _install(libc)
        _verify()
        done.insert(0, f"a seccomp filter that allows {len(ALLOWED)} system calls")
    return done


def _isolate(libc: Any) -> list[str]:
    """A network and IPC namespace without anything in it, and an empty root directory, where the kernel permits it."""
    done = []
    if libc.unshare(_NEW_NET | _NEW_IPC | (_NEW_USER if os.getuid() else 0)) == 0:
        done.append("an empty network namespace")
    with suppress(PermissionError):
        os.chroot(".")
        done.append("an empty root directory")
    return done


def _install(libc: Any) -> None:
    """Install the filter for all threads."""
    code = program(platform.machine())
    filters = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(filters))  # struct sock_fprog
    number = ARCHITECTURES[platform.machine()][1]
    arguments = [ctypes.c_long(one) for one in (number, _SECCOMP_SET_MODE_FILTER, _ALL_THREADS)]
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(*arguments, header):
        raise OSError(f"the kernel refused the seccomp filter: {os.strerror(ctypes.get_errno())}")


def _verify() -> None:
    """Raise OSError unless system calls that must fail do fail with EPERM."""
    attempts: dict[str, Callable[[], object]] = {
        "open a directory": lambda: os.open("/", os.O_RDONLY),
        "open a socket": lambda: socket.socket(),
        "open a pipe": lambda: os.pipe(),
        "signal the parent": lambda: os.kill(os.getppid(), 0),
    }
    for what, attempt in attempts.items():
        try:
            attempt()
        except OSError as error:
            if error.errno == errno.EPERM:
                continue
        raise OSError(f"the seccomp filter is installed and does not work: the process can {what}")
