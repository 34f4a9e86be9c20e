"""The process that runs a model's code. It imports nothing of apt-bench: `Sandbox` starts it by the path of this file.

A message is its length (4 bytes, little-endian) and a map in msgpack. An array in it is
`{"__array__": dtype, "shape": [...], "data": bytes}`. The messages:

| from | message | contents |
|---|---|---|
| child | greeting | `wall`: what contains the process, a list of texts; or `failed`: why nothing does |
| parent | start | `code`: a block, `number`: its number |
| child | call | `call`: a function's name, `args`, `kwargs` |
| parent | answer | `value`, `error`: None or a text |
| child | end | `end`: None, or "memory" where too little memory is left for another block |

A message of the child is a pair: the map, and what the code wrote to stdout and stderr since the last message."""

from __future__ import annotations

import builtins
import importlib
import io
import json
import linecache
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

AVAILABLE = (
    "abc, base64, bisect, cmath, collections, contextlib, copy, dataclasses, datetime, decimal, enum, fractions, "
    "functools, heapq, io, itertools, json, math, numbers, numpy, numpy.fft, numpy.linalg, numpy.ma, "
    "numpy.polynomial, numpy.random, operator, pprint, random, re, scipy.spatial, "
    "scipy.spatial.transform, statistics, string, sys, textwrap, time, traceback, types, typing, warnings"
)
"""The modules that the code can import. They are loaded before the process is closed in."""

SPARE_BYTES = 32 << 20
"""Memory that must be free after a MemoryError, or the process ends."""


class Output(io.TextIOBase):
    """A text file in memory that keeps its first and its last characters.

    Args:
        most: Characters that are kept.
    """

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._head, self._omitted = "", 0
        self._parts, self._size = [""], 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Append a text."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._parts.append(text)
        self._size += len(text)
        if self._size > 8 * self._half:
            self._shorten()
        return len(text)

    def _shorten(self) -> None:
        text = "".join(self._parts)
        room = self._half - len(self._head)
        self._head, text = self._head + text[:room], text[room:]
        self._omitted += max(0, len(text) - self._half)
        self._parts = [text[-self._half :]]
        self._size = len(self._parts[0])

    def take(self) -> str:
        """The text so far; afterwards the file is empty."""
        self._shorten()
        omitted = f"\n[... {self._omitted} characters omitted ...]\n" if self._omitted else ""
        text = self._head + omitted + self._parts[0]
        self._head, self._omitted, self._parts, self._size = "", 0, [""], 0
        return text


class ApiError(RuntimeError):
    """A function of the robot failed. The message says why."""


class _Pipes:
    """The two pipes to the parent. Only this class of the child touches them."""

    def __init__(self, source: int, sink: int, output: int, most: int) -> None:
        import msgpack
        import numpy as np

        self._source, self._sink, self._most = source, sink, most - 10 * output
        self._read, self._write, self._exit = os.read, os.write, os._exit  # the code may replace them in `os`
        self._packb, self._unpackb, self._np = msgpack.packb, msgpack.unpackb, np
        self.out, self.err = Output(output), Output(output)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, with what the code has written. Raises TypeError, ValueError and OverflowError."""
        packed = self._packb(message, default=self._plain)
        if len(packed) > self._most:
            raise ValueError(f"its arguments take {len(packed)} bytes, and at most {self._most} can be sent")
        texts = [one.take().encode("utf-8", "replace").decode() for one in (self.out, self.err)]
        packed = b"\x92" + packed + self._packb(texts)  # \x92 begins a list of two
        data = memoryview(len(packed).to_bytes(4, "little") + packed)
        while data:
            data = data[self._write(self._sink, data) :]

    def receive(self) -> dict[str, Any]:
        """The parent's next message. The process ends with its parent."""
        length = int.from_bytes(self._exactly(4), "little")
        message: dict[str, Any] = self._unpackb(self._exactly(length), object_hook=self._array)
        return message

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._read(self._source, min(count, 1 << 20))
            if not part:
                self._exit(0)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _plain(self, value: Any) -> Any:
        """What msgpack can send, of an array or a numpy number."""
        if isinstance(value, self._np.generic):
            value = value.item()
            if isinstance(value, bool | int | float | str | bytes):
                return value
        if isinstance(value, self._np.ndarray) and value.dtype.kind in "biuf" and value.itemsize <= 8:
            return {"__array__": value.dtype.str, "shape": list(value.shape), "data": value.tobytes()}
        raise TypeError(
            f"an object of type {type(value).__name__} cannot be sent: use numbers, text, lists, dicts and numpy arrays"
        )

    def _array(self, found: dict[str, Any]) -> Any:
        if "__array__" not in found:
            return found
        return self._np.frombuffer(found["data"], found["__array__"]).reshape(found["shape"]).copy()


def _function(name: str, pipes: _Pipes) -> Callable[..., Any]:
    """The function that the code calls: a message to the parent, which answers."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            pipes.send({"call": name, "args": list(args), "kwargs": kwargs})
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(f"{name}: {error}") from None
        answer = pipes.receive()
        if answer["error"] is not None:
            raise ApiError(answer["error"])
        return answer["value"]

    call.__name__ = call.__qualname__ = name
    return call


class _NoFiles:
    """The only finder of modules after the start: it finds none, and lists what there is."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> NoReturn:
        raise ModuleNotFoundError(
            f"No module named {name!r} here. These can be imported: {AVAILABLE}.", name=name
        )


def _report(error: BaseException) -> str:
    """The traceback, of which only the frames in the code are shown."""
    try:
        found = traceback.TracebackException(type(error), error, error.__traceback__, lookup_lines=False)
        chain: list[traceback.TracebackException | None] = [found]
        for one in chain:
            if one is not None and len(chain) < 100:
                one.stack[:] = [frame for frame in one.stack if frame.filename.startswith("<block")]
                chain += [one.__cause__, one.__context__]
        return "".join(found.format())
    except BaseException:
        return f"{type(error).__name__} (its traceback cannot be written)\n"


def _run(code: str, number: int, namespace: dict[str, Any], pipes: _Pipes) -> str | None:
    """Run one block. Returns "memory" where too little memory is left for another block."""
    name = f"<block {number}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    reserve = [bytes(SPARE_BYTES // 8)]
    try:
        exec(compile(code, name, "exec"), namespace)
    except MemoryError as error:
        reserve.clear()
        pipes.err.write(_report(error))
    except BaseException as error:
        pipes.err.write(_report(error))
    else:
        return None
    try:
        bytes(SPARE_BYTES)
    except MemoryError:
        return "memory"
    return None


def main() -> None:
    """Import, close the process in, greet the parent and run its blocks."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import wall

    del sys.path[0]
    settings = json.loads(sys.argv[1])
    for one in AVAILABLE.split(", "):
        importlib.import_module(one)
    import numpy as np

    np.random.seed(0)
    sys.modules["random"].seed(0)
    pipes = _Pipes(os.dup(0), os.dup(1), settings["output"], settings["message"])
    try:
        done = wall.close_in(
            settings["memory"], settings["cpu_seconds"], settings["parent"], settings["seccomp"]
        )
    except OSError as error:
        pipes.send({"failed": str(error)})
        return
    pipes.send({"wall": done})
    sys.meta_path[:] = [_NoFiles()]
    sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None  # type: ignore[misc]
    namespace: dict[str, Any] = {}
    given: dict[str, Any] = {name: _function(name, pipes) for name in settings["functions"]}
    given |= {"np": np, "numpy": np, "math": sys.modules["math"], "ApiError": ApiError}
    given |= {"__name__": "__main__", "__builtins__": builtins}
    originals, modules = dict(vars(builtins)), dict(sys.modules)
    while True:
        start = pipes.receive()
        vars(builtins).update(originals)
        sys.modules |= modules
        namespace |= given
        sys.stdin, sys.stdout, sys.stderr = None, pipes.out, pipes.err
        pipes.send({"end": _run(start["code"], start["number"], namespace, pipes)})


if __name__ == "__main__":
    main()
