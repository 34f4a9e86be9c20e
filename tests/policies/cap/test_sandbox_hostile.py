"""Hostile code is contained: its effect is absent, and the next block runs."""

import ctypes
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from apt_bench.policies.code_as_policies.sandbox import Ended, Limits, Sandbox
from tests.policies.cap.blocks import FUNCTIONS, run
from tests.policies.cap.hostile import CHANGE, GOES_ON, READ, STOPPED

UNCONTAINED = """
import contextlib, io, json, sys
import numpy as np
for code in json.load(sys.stdin):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(Exception):
        exec(code, {"np": np})
    print(repr(out.getvalue()))
"""
"""Runs blocks one after another, as far as they get, and prints a line of output for each."""


@dataclass
class Targets:
    """What hostile code attacks. Everyone may read and write the files, as far as files have permissions."""

    secret: str
    folder: Path
    server: socket.socket
    process: int
    signals: list[int]

    def __post_init__(self) -> None:
        self.file, self.array = self.folder.with_name("secret.txt"), self.folder.with_name("secret.npy")
        self.memory = ctypes.create_string_buffer(self.secret.encode())
        self.file.write_text(self.secret)
        np.save(self.array, self.secret)
        for one in (self.folder, *list(self.folder.parents)[:2]):
            one.chmod(0o777)
        for one in (self.file, self.array):
            one.chmod(0o666)

    def put_into(self, code: str) -> str:
        names = {
            "FILE": repr(str(self.file)),
            "ARRAY": repr(str(self.array)),
            "FOLDER": repr(str(self.folder)),
        }
        names |= {"PORT": str(self.server.getsockname()[1]), "PROCESS": str(self.process)}
        names |= {"ADDRESS": str(ctypes.addressof(self.memory))}
        return re.sub(rf"\b({'|'.join(names)})\b", lambda found: names[found[0]], code)

    def are_untouched(self) -> bool:
        kept = self.file.read_text() == self.secret and self.file.stat().st_mode & 0o777 == 0o666
        return kept and not list(self.folder.iterdir()) and not self.signals and not self.connected()

    def connected(self) -> bool:
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    secret = f"secret_{secrets.token_hex(8)}"
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: signals.append(number))
    os.environ["APT_BENCH_API_KEY"] = secret
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", secret])
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield Targets(secret, tmp_path_factory.mktemp("world"), server, process.pid, signals)
    process.kill()
    process.wait()
    del os.environ["APT_BENCH_API_KEY"]
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(scope="module")
def sandbox(targets: Targets) -> Iterator[Sandbox]:
    with Sandbox(FUNCTIONS, limits=Limits(seconds=10, memory=512 << 20, calls=300)) as one:
        yield one


@pytest.fixture(scope="module")
def hasty() -> Iterator[Sandbox]:
    with Sandbox(FUNCTIONS, limits=Limits(seconds=0.5)) as one:
        yield one


def goes_on(sandbox: Sandbox) -> bool:
    code = "print(np.arange(4).sum(), look(1), len([1]))"
    return run(sandbox, code, lambda call: call.args[0] + 1) == Ended("6 2 1\n", "")


def threads(sandbox: Sandbox) -> int:
    """How many threads of how many processes the sandbox's session has."""
    assert sandbox._child is not None
    count = 0
    for stat in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        try:
            session = int(stat.read_text().rsplit(")", 1)[1].split()[3])
        except OSError:
            continue  # it has just ended
        count += session == sandbox._child._process.pid
    return count


def uncontained(codes: Iterable[str]) -> list[str]:
    """What the blocks print in a process that nothing contains."""
    blocks = json.dumps(list(codes))
    done = subprocess.run(
        [sys.executable, "-c", UNCONTAINED], input=blocks, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", READ)
def test_no_secret_is_read(sandbox: Sandbox, targets: Targets, name: str) -> None:
    ended = run(sandbox, targets.put_into(READ[name]))
    assert targets.secret not in str(ended)
    assert goes_on(sandbox)
    assert threads(sandbox) == 1


@pytest.mark.parametrize("name", CHANGE)
def test_nothing_outside_changes(sandbox: Sandbox, targets: Targets, name: str) -> None:
    run(sandbox, targets.put_into(CHANGE[name]))
    assert targets.are_untouched()
    assert goes_on(sandbox)
    assert threads(sandbox) == 1


@pytest.mark.parametrize("name", STOPPED)
def test_what_takes_too_much_is_stopped(sandbox: Sandbox, hasty: Sandbox, name: str) -> None:
    code, reason = STOPPED[name]
    one = hasty if "computed" in reason else sandbox
    assert reason in str(run(one, code).stopped)
    assert goes_on(one)


@pytest.mark.parametrize("name", GOES_ON)
def test_the_next_block_runs(sandbox: Sandbox, name: str) -> None:
    ended = run(sandbox, GOES_ON[name])
    assert max(len(ended.stdout), len(ended.stderr)) < 20_200
    assert goes_on(sandbox)


def test_without_the_wall_the_same_blocks_succeed(targets: Targets, tmp_path: Path) -> None:
    """The tests above could fail: in a process that nothing contains, these blocks read and change things."""
    lines = dict(zip(READ, uncontained(targets.put_into(code) for code in READ.values()), strict=True))
    lines.pop("another's memory")  # the kernel permits that to few users
    assert not [name for name, line in lines.items() if targets.secret not in line]
    other = Targets(targets.secret, tmp_path, targets.server, targets.process, [])
    names = "a higher limit", "another user", "a program in place of this one", "many descriptors"
    harmless = [
        code
        for name, code in CHANGE.items()
        if re.search(r"FOLDER|socket\.socket", code) and name not in names
    ]
    uncontained(map(other.put_into, harmless))
    assert {one.name.removesuffix(".npy") for one in other.folder.iterdir()} >= set("abcdefghi")
    assert other.connected()
