"""The seccomp filter by itself: without the other layers (user, root directory, limits), which hide its gaps."""

import ctypes
import errno
import platform
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from apt_bench.policies.code_as_policies import wall

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
READ_WRITE, EXECUTE = 3, 4
PRIVATE, ANONYMOUS = 2, 0x20


def decide(program: bytes, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What a filter of classic BPF returns for a system call."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(*arguments, *[0] * 6)[:6])
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at = word = 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        match operation:
            case 0x20:
                word = struct.unpack_from("<I", data, k)[0]
            case 0x15:
                at += yes if word == k else no
            case 0x45:
                at += yes if word & k else no
            case 0x06:
                return k
            case _:
                raise AssertionError(f"unknown operation {operation:#x}")


@pytest.mark.parametrize("machine", wall.ARCHITECTURES)
def test_the_filter_allows_its_list_and_nothing_else(machine: str) -> None:
    program, (architecture, _) = wall.program(machine), wall.ARCHITECTURES[machine]
    column = list(wall.ARCHITECTURES).index(machine)
    allowed = {
        number[column] for name, number in wall.ALLOWED.items() if name != "mmap"
    }  # of a file; see below
    assert {n for n in range(2000) if decide(program, architecture, n) == ALLOW} == allowed
    assert {decide(program, architecture, n) for n in range(2000) if n not in allowed} == {REFUSE}
    x32 = 0x40000000
    assert {decide(program, architecture, x32 | n) for n in range(2000)} == {REFUSE}
    for other in (0x40000003, 0x40000028, 0):  # i386, arm, none
        assert {decide(program, other, n) for n in range(2000)} == {KILL}


@pytest.mark.parametrize("machine", wall.ARCHITECTURES)
def test_memory_is_anonymous_and_never_executable(machine: str) -> None:
    program, (architecture, _) = wall.program(machine), wall.ARCHITECTURES[machine]
    mmap, mprotect = (
        wall.ALLOWED[one][list(wall.ARCHITECTURES).index(machine)] for one in ("mmap", "mprotect")
    )
    decisions = {
        (protection, flags): decide(
            program, architecture, mmap, (0, 4096, protection, flags, -1 & (1 << 64) - 1)
        )
        for protection in range(8)
        for flags in (PRIVATE, PRIVATE | ANONYMOUS)
    }
    assert {key for key, value in decisions.items() if value == ALLOW} == {
        (p, PRIVATE | ANONYMOUS) for p in range(4)
    }
    assert [decide(program, architecture, mprotect, (0, 4096, p)) == ALLOW for p in range(8)] == [
        True
    ] * 4 + [False] * 4


def in_filter(code: str) -> str:
    """The output of a process that installs the filter alone, and then runs the code."""
    prelude = f"""
        import ctypes, errno, os, sys
        sys.path.insert(0, {str(Path(wall.__file__).parent)!r})
        import wall
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = libc.mmap.restype = ctypes.c_long
        def call(*arguments):
            ctypes.set_errno(0)
            result = libc.syscall(*map(ctypes.c_long, arguments))
            return ctypes.get_errno() if result == -1 else 0
        wall._install(libc)
    """
    program = textwrap.dedent(prelude) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert not done.stderr
    assert done.returncode == 0
    return done.stdout


def test_the_kernel_refuses_every_other_system_call() -> None:
    code = f"""
        column = list(wall.ARCHITECTURES).index({platform.machine()!r})
        allowed = {{number[column] for number in wall.ALLOWED.values()}}
        of_probes = {{335, 336}}  # on x86_64: they pass every filter, and end a process that calls them
        others = set(range(600)) - allowed - of_probes
        print(len(others), {{n for n in others if call(n, 0, 0, 0, 0, 0, 0) != errno.EPERM}})
        wall._verify()
    """
    assert in_filter(code) == f"{598 - len(wall.ALLOWED)} set()\n"


def test_the_kernel_refuses_executable_memory_and_files_in_memory() -> None:
    code = f"""
        number = wall.ALLOWED["mmap"][list(wall.ARCHITECTURES).index({platform.machine()!r})]
        protect = wall.ALLOWED["mprotect"][list(wall.ARCHITECTURES).index({platform.machine()!r})]
        print(call(number, 0, 4096, {READ_WRITE}, {PRIVATE | ANONYMOUS}, -1, 0))
        print(call(number, 0, 4096, {READ_WRITE | EXECUTE}, {PRIVATE | ANONYMOUS}, -1, 0) == errno.EPERM)
        print(call(number, 0, 4096, {READ_WRITE}, {PRIVATE}, 0, 0) == errno.EPERM)
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        page = libc.mmap(None, 4096, {READ_WRITE}, {PRIVATE | ANONYMOUS}, -1, 0)
        print(call(protect, page, 4096, 1), call(protect, page, 4096, 5) == errno.EPERM)
    """
    assert in_filter(code).split() == ["0", "True", "True", "0", "True"]


def test_the_check_of_the_wall_fails_where_there_is_none() -> None:
    with pytest.raises(OSError, match="does not work: the process can open a directory"):
        wall._verify()


def test_a_filter_that_the_kernel_does_not_accept_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        wall, "program", lambda machine: b"\xff" * 16
    )  # no instructions of BPF; nothing is installed
    monkeypatch.setattr(wall, "_PR_SET_NO_NEW_PRIVS", 3)  # PR_GET_DUMPABLE: this process keeps its privileges
    with pytest.raises(OSError, match="the kernel refused the seccomp filter"):
        wall._install(ctypes.CDLL(None, use_errno=True))
