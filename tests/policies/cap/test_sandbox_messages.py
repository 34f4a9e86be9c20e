"""Messages that the code forges: each stops the child with a reason, and the parent goes on."""

import random
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from apt_bench.policies.code_as_policies.sandbox import Call, Ended, Limits, Sandbox
from tests.policies.cap.blocks import FUNCTIONS, run

TEXTS = ["", ""]
NO_PROTOCOL, UNREADABLE = "not part of the protocol", "cannot be read"


def call(name: Any = "look", args: Any = (), kwargs: Any = None) -> list[Any]:
    return [{"call": name, "args": args, "kwargs": {} if kwargs is None else kwargs}, TEXTS]


def array(dtype: Any, shape: Any, data: Any) -> list[Any]:
    return call(args=[{"__array__": dtype, "shape": shape, "data": data}])


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def frame(message: Any) -> bytes:
    packed: bytes = msgpack.packb(message)
    return len(packed).to_bytes(4, "little") + packed


def write(data: bytes) -> str:
    """Code that writes bytes to the parent, and then waits."""
    loop = (
        f"for n in range(10):\n    try: os.write(n, bytes.fromhex('{data.hex()}'))\n    except OSError: pass"
    )
    return f"import os, time\n{loop}\ntime.sleep(60)\n"


FORGED = {
    "an unknown function": (frame(call("system")), "a function that does not exist: system"),
    "a function of the sandbox": (frame(call("__init__")), "a function that does not exist"),
    "a name that is an array": (
        frame(call({"__array__": "<f8", "shape": [2], "data": bytes(16)})),
        NO_PROTOCOL,
    ),
    "a name that is a list": (frame(call(["look"])), NO_PROTOCOL),
    "arguments that are no list": (frame(call(args="abc")), NO_PROTOCOL),
    "keywords that are no dict": (frame(call(kwargs=[1])), NO_PROTOCOL),
    "a keyword that is no text": (frame(call(kwargs={b"a": 1})), "a key that is not text"),
    "a keyword that is a number": (frame(call(kwargs={1: 1})), UNREADABLE),
    "an answer": (frame([{"value": 1, "error": None}, TEXTS]), NO_PROTOCOL),
    "a greeting": (frame([{"wall": ["nothing"]}, TEXTS]), NO_PROTOCOL),
    "an end of an unknown kind": (frame([{"end": 5}, TEXTS]), NO_PROTOCOL),
    "no pair": (frame({"end": None}), NO_PROTOCOL),
    "no texts": (frame([{"end": None}, [1, 2]]), NO_PROTOCOL),
    "a number": (frame(5), NO_PROTOCOL),
    "an array": (frame({"__array__": "<f8", "shape": [2], "data": bytes(16)}), NO_PROTOCOL),
    "an empty message": (frame(5)[:0] + bytes(4), UNREADABLE),
    "a length of 4 GiB": (b"\xff" * 5, "a message of 4294967295 bytes, and at most 4194304 are accepted"),
    "no msgpack": (b"\x03\0\0\0\xc1\xc1\xc1", UNREADABLE),
    "a list that announces 2**32 items": (b"\x05\0\0\0\xdd\xff\xff\xff\xff", UNREADABLE),
    "text that is no UTF-8": (b"\x03\0\0\0\xa2\xff\xff", UNREADABLE),
    "an extension type": (frame(call(args=[msgpack.ExtType(5, b"x")])), "a value of type ExtType"),
    "a time": (frame(call(args=[msgpack.Timestamp(1, 1)])), "a value of type Timestamp"),
    "an array of objects": (frame(array("|O", [1], bytes(8))), "dtype |O"),
    "an array of texts": (frame(array("<U4", [1], bytes(16))), "dtype <U4"),
    "an array without data": (frame(array("<f8", [2], b"")), UNREADABLE),
    "an array with a negative shape": (frame(array("<f8", [-1], bytes(8))), UNREADABLE),
    "an array that is too large": (frame(array("<f8", [2**62, 2**62, 0], b"")), UNREADABLE),
    "an array with many dimensions": (frame(array("<f8", [1] * 40, bytes(8))), UNREADABLE),
    "lists in 30 levels": (frame(call(args=nested(30))), "more than 20 levels"),
    "lists in 400 levels": (frame(call(args=nested(400))), "more than 20 levels"),
    "lists in 5000 levels": (b"\x89\x13\0\0" + b"\x91" * 5000 + b"\x90", UNREADABLE),
    "two calls at once": (frame(call()) * 2, "two messages at once"),
}
"""Bytes that the code writes to the parent, and a part of the reason for which it is stopped."""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(FUNCTIONS, limits=Limits(seconds=0.5)) as one:
        yield one


def goes_on(sandbox: Sandbox) -> bool:
    return run(sandbox, "print(look(1))", lambda call: call.args[0] + 1) == Ended("2\n", "")


class Replay:
    """Stands in for the child: it sends one frame."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame

    def receive(self, seconds: float, most: int) -> bytes:
        return self.frame

    def send(self, message: Any) -> None:
        pass

    def close(self) -> None:
        pass


def received(sandbox: Sandbox, content: bytes) -> Call | Ended:
    """What the sandbox makes of the content of a frame."""
    sandbox.close()
    sandbox._child = Replay(content)  # type: ignore[assignment]
    sandbox.start("")
    return sandbox.next()


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_message_is_refused(sandbox: Sandbox, name: str) -> None:
    data, reason = FORGED[name]
    if reason in ("two messages at once",) or len(data) - 4 != int.from_bytes(data[:4], "little"):
        ended: Call | Ended = run(sandbox, write(data))  # the length itself is wrong
    else:
        ended = received(sandbox, data[4:])
    assert isinstance(ended, Ended)
    assert reason in str(ended.stopped)


@pytest.mark.parametrize("name", ["an unknown function", "no msgpack"])
def test_a_child_that_forges_is_stopped_and_the_next_block_runs(sandbox: Sandbox, name: str) -> None:
    data, reason = FORGED[name]
    assert reason in str(run(sandbox, write(data)).stopped)
    assert goes_on(sandbox)


def test_a_forged_call_of_a_function_is_a_call(sandbox: Sandbox) -> None:
    """The code may call it anyway. If it does not read the answer, it gains nothing."""
    sandbox.start(write(frame(call(args=[1, "a"]))))
    assert sandbox.next() == Call("look", (1, "a"), {})
    sandbox.answer(bytes(1 << 22))  # more than a pipe holds
    assert "computed for more than" in str(getattr(sandbox.next(), "stopped", None))
    assert goes_on(sandbox)


def test_a_forged_end_ends_the_block_and_the_process_does_not_run_on(sandbox: Sandbox) -> None:
    ended = run(sandbox, write(frame([{"end": None}, ["forged", ""]])))
    assert ended == Ended("forged", "")
    assert run(sandbox, "print(1)").stopped  # the loop that was suspended
    assert goes_on(sandbox)


def test_a_frame_that_is_not_finished_is_not_waited_for(sandbox: Sandbox) -> None:
    assert "computed for more than" in str(run(sandbox, write(b"\xff\xff\x01\0")).stopped)
    assert goes_on(sandbox)


def test_a_flooded_pipe_is_refused_at_once(sandbox: Sandbox) -> None:
    loop = "for n in range(10):\n        try: os.write(n, b'x' * 100000)\n        except OSError: pass"
    assert "at most 4194304 are accepted" in str(run(sandbox, f"import os\nwhile True:\n    {loop}").stopped)
    assert goes_on(sandbox)


def test_no_mutation_of_a_message_raises_in_the_parent(sandbox: Sandbox) -> None:
    random.seed(0)
    whole = [
        frame(call(args=[1, {"a": [2.5, None]}], kwargs={"b": "c"}))[4:],
        frame(array("<f8", [2], bytes(16)))[4:],
    ]
    kinds = set()
    for _ in range(3000):
        content = bytearray(random.choice(whole))
        for _ in range(random.randint(1, 4)):
            content[random.randrange(len(content))] = random.randrange(256)
        event = received(sandbox, bytes(content))
        kinds.add((type(event), bool(getattr(event, "stopped", False))))
    assert kinds == {(Call, False), (Ended, True)}
