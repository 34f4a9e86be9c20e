"""Policies that raise or answer anything, by name: `how`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from apt_bench.core.errors import ServerLost
from apt_bench.envs.base import Observation
from apt_bench.policies.base import PolicySpec, Resources
from tests.toy import PushPolicy

GOOD = np.zeros((2, 7))


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Unpicklable(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__("cannot cross")
        self.two = lambda: two


class Lazy:
    """An answer that raises only when it is read."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise RuntimeError("evaluated late")


class Endless(list):
    def __len__(self) -> int:
        raise OSError("no length")


def client_error(module: str, name: str) -> BaseException:
    """An exception of a client library that need not be installed."""
    return type(name, (Exception,), {"__module__": module})("connection is gone")


def late() -> Iterator[np.ndarray]:
    yield GOOD
    raise ValueError("at the second answer")


def throw(error: BaseException | type[BaseException]) -> Any:
    raise error


WILD: dict[str, Callable[[], Any]] = {
    "exit": lambda: throw(SystemExit(0)),
    "interrupt": lambda: throw(KeyboardInterrupt),
    "generator_exit": lambda: throw(GeneratorExit),
    "cancelled": lambda: throw(asyncio.CancelledError()),
    "mute": lambda: throw(Mute()),
    "unpicklable": lambda: throw(Unpicklable(1, 2)),
    "surrogates": lambda: throw(ValueError("half a pair: \ud800 \x1b[31m")),
    "megabytes": lambda: throw(ValueError("x" * 5_000_000)),
    "recursion": lambda: throw(RecursionError("too deep")),
    "late": late,
    "lazy": lambda: [Lazy()],
    "endless": lambda: [Endless()],
    "generator": lambda: [late()],
    "none": lambda: None,
}
"""Each ends an episode as the policy's fault."""

LOST: dict[str, Callable[[], Any]] = {
    "server_lost": lambda: throw(ServerLost("the server sleeps")),
    "websockets": lambda: throw(client_error("websockets.exceptions", "ConnectionClosed")),
    "zmq": lambda: throw(client_error("zmq.error", "Again")),
    "httpx": lambda: throw(client_error("httpx", "TransportError")),
}
"""Each is missing data."""


class WildPolicy(PushPolicy):
    """Good but in the episodes of initial state 1, from the second decision on."""

    spec = PolicySpec("wild", horizon=4, execute=3, resources=Resources(placement="worker"))

    def __init__(self, how: str) -> None:
        super().__init__()
        self.call = {**WILD, **LOST}[how]

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        if any("/init1/" in o.episode and o.step for o in observations):
            return self.call()
        return super().act(observations)


class HostedWildPolicy(WildPolicy):
    """The same in an actor."""

    spec = dataclasses.replace(WildPolicy.spec, name="hosted_wild", resources=Resources())


class Unmade(PushPolicy):
    """Cannot be constructed."""

    def __init__(self, how: str) -> None:
        {**WILD, **LOST}[how]()


class RaisingSpec(PushPolicy):
    """Declares nothing."""

    @property
    def spec(self) -> PolicySpec:  # type: ignore[override]
        raise SystemExit(0)


class Answering(WildPolicy):
    """Answers so from the first decision on."""

    spec = dataclasses.replace(WildPolicy.spec, name="answering")

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        return self.call()


class Disconnected(PushPolicy):
    """Loses its connection for good after so many answers."""

    spec = dataclasses.replace(WildPolicy.spec, name="disconnected", resources=Resources())

    def __init__(self, answers: int = 12) -> None:
        super().__init__()
        self.left, self.asked = answers, 0

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        self.asked += 1
        if self.left <= 0:
            throw(client_error("websockets.exceptions", "ConnectionClosed"))
        self.left -= 1
        return super().act(observations)
