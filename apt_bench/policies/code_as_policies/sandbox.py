"""Runs a model's code in a child process that the kernel contains, and receives the calls of the robot's functions.

The child is `sandbox_child.py`; `wall.py` contains it. Nothing that the child sends is trusted."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line
from apt_bench.policies.code_as_policies import wall
from apt_bench.policies.code_as_policies.sandbox_child import Output
from apt_bench.wire.arrays import WireError, array_of, pack, sendable, unpack

CHILD = Path(__file__).with_name("sandbox_child.py")

ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # sets of texts have the same order each time
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""The child's whole environment: with one thread, numpy starts none, and the filter permits none."""

DEEPEST = 20
"""Levels of lists and dicts in a message of the child."""


@dataclass(frozen=True)
class Limits:
    """What one child may use.

    Args:
        seconds: Time in which a block computes. The time in which the parent answers calls is not counted: the child
            does not run then.
        memory: Address space in bytes, of which Python, numpy and scipy take about 250 MB.
        message: Bytes of one message from the child.
        traffic: Bytes of all messages from the child during a block.
        calls: Calls of functions during a block.
        output: Characters that are kept of stdout, and of stderr; the middle of a longer text is omitted.
        start_seconds: Time in which a child must have started.
    """

    seconds: float = 20.0
    memory: int = 1 << 30
    message: int = 4 << 20
    traffic: int = 64 << 20
    calls: int = 1000
    output: int = 20_000
    start_seconds: float = 60.0


@dataclass(frozen=True)
class Call:
    """The code called a function. The caller must reply with `Sandbox.answer`.

    Args:
        name: One of the functions that the sandbox was made with.
        args: None, booleans, numbers, texts, bytes, lists, dicts and numpy arrays. A tuple arrives as a list.
        kwargs: Likewise, by name.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """The block ended.

    Args:
        stdout: What the code printed. Of a block that was stopped, what it printed before its last call.
        stderr: Likewise; an exception's traceback is in it.
        stopped: Why the child process ended, a text for the model; None where it still runs.
    """

    stdout: str
    stderr: str
    stopped: str | None = None


class _Stopped(Exception):
    """The child ended, or must end. The message says why."""


class _Child:
    """The process and the two pipes to it. It is suspended except during `receive`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-B", str(CHILD), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
        )
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._sink, self._source, self._errors = (cast(IO[bytes], pipe) for pipe in pipes)
        os.set_blocking(self._sink.fileno(), False)
        self._outgoing, self._incoming = b"", b""

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message. `receive` writes it."""
        packed = pack(message, _plain)
        self._outgoing += len(packed).to_bytes(4, "little") + packed

    def receive(self, seconds: float, most: int) -> bytes:
        """Let the child run until it has sent a message of at most `most` bytes. Raises TimeoutError and _Stopped."""
        deadline = time.monotonic() + seconds
        self._signal(signal.SIGCONT)
        while len(self._incoming) < 4 or len(self._incoming) < 4 + self._announced(most):
            poll = select.poll()
            poll.register(self._source, select.POLLIN)
            if self._outgoing:
                poll.register(self._sink, select.POLLOUT)
            left = deadline - time.monotonic()
            ready = dict(poll.poll(1000 * left)) if left > 0 else {}
            if not ready:
                raise TimeoutError
            if self._source.fileno() in ready:
                data = os.read(self._source.fileno(), 1 << 16)
                if not data:
                    raise _Stopped(self._death())
                self._incoming += data
            elif self._outgoing:
                try:
                    self._outgoing = self._outgoing[
                        os.write(self._sink.fileno(), self._outgoing[: 1 << 16]) :
                    ]
                except BrokenPipeError:
                    raise _Stopped(self._death()) from None
        self._signal(signal.SIGSTOP)
        end = 4 + self._announced(most)
        if len(self._incoming) > end:
            raise _Stopped("it sent two messages at once")
        frame, self._incoming = self._incoming[4:end], b""
        return frame

    def _announced(self, most: int) -> int:
        """The length of the message that arrives."""
        length = int.from_bytes(self._incoming[:4], "little")
        if length > most:
            raise _Stopped(f"it sent a message of {length} bytes, and at most {most} are accepted")
        return length

    def _death(self) -> str:
        """How the process ended that has closed its pipes."""
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "it closed its pipes"
        if code >= 0:
            return f"it exited with code {code}"
        return f"it was ended by signal {-code} ({signal.strsignal(-code)})"

    def errors(self) -> str:
        """What a child that did not start wrote to stderr. The child must be dead."""
        return one_line(self._errors.read().decode(errors="replace"))

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:  # else its id may be another process's
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End the process group and wait for it."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End the process group and close the pipes."""
        self.kill()
        for pipe in (self._sink, self._source, self._errors):
            pipe.close()


class Sandbox:
    """A child process that runs blocks of code, one after another, in one namespace.

    The child runs only during `next`, and is suspended at any other time. Use a sandbox from one thread only: the
    kernel kills the child when the thread that started it ends.

    Args:
        functions: Names that the code can call.
        unsafe: Run without a wall where this machine has none.
        limits: What the child may use.

    Raises:
        UserError: This machine has no wall and `unsafe` is false, or the child cannot start.
    """

    wall: str
    """One sentence: what contains the child on this machine."""

    def __init__(self, functions: Sequence[str], unsafe: bool = False, limits: Limits = Limits()) -> None:
        self._child: _Child | None = None
        self._functions, self._unsafe, self._limits = tuple(functions), unsafe, limits
        self._running, self._blocks = False, 0
        self._spawn()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def start(self, code: str) -> None:
        """Begin a block, in the namespace of the blocks before it. A block that has not ended is given up."""
        if self._running:
            self._stop()
        child = self._child or self._spawn()
        self._running, self._blocks = True, self._blocks + 1
        self._calls, self._traffic, self._left = 0, 0, self._limits.seconds
        room = self._limits.output + 100  # the child keeps `output` characters, and adds how many it omitted
        self._out, self._err = Output(room), Output(room)
        child.send({"code": code.encode(errors="replace").decode(), "number": self._blocks})

    def next(self) -> Call | Ended:
        """Let the code run until it calls a function or ends."""
        if not self._running:
            raise RuntimeError("no block runs: call start first")
        try:
            match self._receive():
                case {"call": str(name), "args": list(args), "kwargs": dict(kwargs)}:
                    return self._called(name, args, kwargs)
                case {"end": None}:
                    pass
                case {"end": str()}:
                    raise _Stopped(f"it used more than {self._limits.memory >> 20} MB of memory")
                case _:
                    raise _Stopped("it sent a message that is not part of the protocol")
        except _Stopped as reason:
            self._stop()
            text = f"The process was stopped: {reason}. The next code block starts with an empty namespace."
            return Ended(self._out.take(), self._err.take(), text)
        self._running = False
        return Ended(self._out.take(), self._err.take())

    def answer(self, value: Any = None, error: str | None = None) -> None:
        """Reply to the last call.

        Args:
            value: What the call returns.
            error: Text of an exception (class `ApiError` in the code) that the call raises instead.
        """
        if self._child is None:
            raise RuntimeError("no call waits for an answer")
        self._child.send({"value": value, "error": error})

    def close(self) -> None:
        """End the child. A later `start` starts another one, and counts blocks from 1."""
        self._stop()
        self._blocks = 0

    def _stop(self) -> None:
        child, self._child, self._running = self._child, None, False
        if child is not None:
            child.close()

    def _spawn(self) -> _Child:
        """Start a child, closed in if possible."""
        missing = wall.missing()
        if missing is None:
            missing = self._greeted(seccomp=True)
        if missing is not None:
            if not self._unsafe:
                raise UserError(
                    f"This machine has no sandbox for the code that the language model writes: {missing}. Use Linux on "
                    f"{' or '.join(wall.ARCHITECTURES)}, or run the code without a sandbox (--policy-arg unsafe=true), "
                    "only within a container or a virtual machine that holds nothing of value."
                )
            self._greeted(seccomp=False)
        assert self._child is not None
        return self._child

    def _greeted(self, seccomp: bool) -> str | None:
        """Start a child and read its greeting. Returns why the kernel did not close it in."""
        limits = self._limits
        settings = {"functions": self._functions, "memory": limits.memory}
        settings |= {"output": limits.output, "message": limits.message}
        settings |= {
            "cpu_seconds": math.ceil(100 * limits.seconds) + 60,
            "parent": os.getpid(),
            "seccomp": seccomp,
        }
        child = _Child(settings)
        try:
            greeting, _ = unpack(child.receive(limits.start_seconds, limits.message), _array)
        except (_Stopped, TimeoutError) as error:
            child.kill()
            reason = str(error) or f"it took more than {limits.start_seconds:g} s"
            text = child.errors()
            child.close()
            raise UserError(f"The sandbox's process did not start: {reason}. {text}") from None
        except BaseException:
            child.close()
            raise
        if "failed" in greeting:
            child.close()
            return str(greeting["failed"])
        parts = f"{', '.join(greeting['wall'])}."
        self.wall = parts if seccomp else f"none (unsafe). The process is restricted only by {parts}"
        self._child = child
        return None

    def _receive(self) -> dict[str, Any]:
        """The child's next message, checked. Raises _Stopped."""
        assert self._child is not None
        start = time.monotonic()
        try:
            frame = self._child.receive(self._left, self._limits.message)
        except TimeoutError:
            raise _Stopped(f"it computed for more than {self._limits.seconds:g} s") from None
        self._left -= time.monotonic() - start
        self._traffic += len(frame)
        if self._traffic > self._limits.traffic:
            raise _Stopped(f"it sent more than {self._limits.traffic} bytes during one block")
        try:
            message = unpack(frame, _array)
            _check(message)
        except WireError as error:
            raise _Stopped(f"it sent a message that cannot be read ({error})") from None
        match message:
            case [dict() as found, [str() as out, str() as err]]:
                self._out.write(out)
                self._err.write(err)
                return found
        raise _Stopped("it sent a message that is not part of the protocol")

    def _called(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Call:
        """The call, if the function exists and may still be called. Raises _Stopped."""
        if name not in self._functions:
            raise _Stopped(f"it called a function that does not exist: {one_line(name, 100)}")
        self._calls += 1
        if self._calls > self._limits.calls:
            raise _Stopped(f"it called functions more than {self._limits.calls} times")
        return Call(name, tuple(args), kwargs)


def _check(value: Any, depth: int = 0) -> None:
    """Raise WireError for values of other kinds than those of `Call`, and for those that are nested too deeply."""
    if depth > DEEPEST:
        raise WireError(f"lists and dicts in more than {DEEPEST} levels")
    if isinstance(value, list):
        for one in value:
            _check(one, depth + 1)
    elif isinstance(value, dict):
        for key, one in value.items():
            if not isinstance(key, str):
                raise WireError("a key that is not text")
            _check(one, depth + 1)
    elif value is not None and type(value) not in (bool, int, float, str, bytes, np.ndarray):
        raise WireError(f"a value of type {type(value).__name__}")


def _array(found: dict[Any, Any]) -> Any:
    """The array that a map of the protocol describes; any other map as it is."""
    if "__array__" not in found:
        return found
    return array_of(found.get("data"), found["__array__"], found.get("shape"))


def _plain(value: Any) -> Any:
    """What msgpack can send, of an array or a numpy number."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        array = sendable(value)
        return {"__array__": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}
    raise TypeError(f"a {type(value).__name__}")
