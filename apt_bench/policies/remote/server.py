"""What all policies behind a server share: the choice of a server, the run of an episode, chunks, latency."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.core.jsonable import jsonable
from apt_bench.core.text import one_line
from apt_bench.envs.base import ACTION_DIM, AGENTVIEW, WRIST, Observation
from apt_bench.policies.base import PolicySpec, Provenance, Resources
from apt_bench.policies.remote.links import Address, Link, addresses
from apt_bench.suites import EpisodeSpec
from apt_bench.wire.arrays import WireError

API_KEY = "APT_BENCH_API_KEY"
"""Environment variable of the key that a server may want. It is recorded nowhere."""


class RemotePolicy(ABC):
    """A policy on the other side of one connection, one per rollout worker.

    Args:
        server: Addresses of servers that serve the same policy. The first that answers is used; `PolicyRef` gives each
            worker another order.
        horizon: Actions in one chunk, at most.
        execute: Actions executed of each chunk.

    Raises:
        UserError: What can never work: no such server, another protocol, a server that offers another policy.
        ServerLost: No server answers.
    """

    schemes: ClassVar[tuple[str, ...]]
    port: ClassVar[int]
    cameras: tuple[str, ...] = (AGENTVIEW, WRIST)

    def __init__(self, server: str | Sequence[str], horizon: int, execute: int) -> None:
        self.address, self._link = self._connect(addresses(server, self.schemes, self.port))
        self._horizon, self._execute = horizon, execute
        self._seconds: list[float] = []  # of each request of this episode
        try:
            self.metadata = jsonable(self._called(self._greet))
        except BaseException:
            self._link.close()
            raise

    def _connect(self, servers: Sequence[Address]) -> tuple[Address, Link]:
        lost: list[str] = []
        for address in servers:
            try:
                return address, self._open(address)
            except ServerLost as error:
                lost.append(str(error))
        raise ServerLost("; ".join(lost[:4]) + (f"; and {len(lost) - 4} more" if len(lost) > 4 else ""))

    @property
    def spec(self) -> PolicySpec:
        """The interface; what the server said of itself is its provenance. The address is not."""
        return PolicySpec(
            type(self).__name__,
            cameras=self.cameras,
            horizon=self._horizon,
            execute=min(self._execute, self._horizon),
            resources=Resources(placement="worker"),
            provenance=Provenance(weights=self._weights(), about={"server": self.metadata}),
        )

    def _weights(self) -> str | None:
        """The checkpoint's name, where the server says it."""
        return None

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """These episodes begin; a connection runs one at a time."""
        if len(episodes) != 1:
            raise PolicyFault("runs one episode at a time on each connection")
        self._seconds.clear()
        self._called(lambda: self._begin(episodes[0]))

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """One request per observation."""
        return [self._chunk(observation) for observation in observations]

    def finish(self, episode: EpisodeSpec, outcome: Any) -> None:
        """The episode ended."""
        self._called(lambda: self._end(episode, outcome))

    def notes(self, episode: EpisodeSpec) -> Mapping[str, Any]:
        """Requests of the episode, and the server's time for one, from sending it to its reply (median and largest,
        ms)."""
        if not self._seconds:
            return {}
        ms = 1000 * np.array(self._seconds)
        return {
            "requests": len(ms),
            "request_ms": round(float(np.median(ms)), 2),
            "request_ms_max": round(float(ms.max()), 2),
        }

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def _chunk(self, observation: Observation) -> np.ndarray:
        start = time.perf_counter()
        chunk = self._called(lambda: self._infer(observation))
        self._seconds.append(time.perf_counter() - start)
        return chunk

    def _called(self, call: Callable[[], Any]) -> Any:
        """The call's result. What is no message of the protocol says that the server is lost, or another's."""
        try:
            return call()
        except WireError as error:
            self._link.close()
            raise ServerLost(
                f"{self.address.url} sent what is no message of its protocol: {error}"
            ) from error
        except ServerLost:
            self._link.close()
            raise

    @abstractmethod
    def _open(self, address: Address) -> Link:
        """A link to the server. Raises ServerLost where nobody answers."""

    def _greet(self) -> Mapping[str, Any]:
        """The protocol's first messages; what the server says of itself."""
        return {}

    def _begin(self, episode: EpisodeSpec) -> None:  # noqa: B027
        """Tell the server that an episode begins, where the protocol has a message for it."""

    @abstractmethod
    def _infer(self, observation: Observation) -> np.ndarray:
        """The chunk (n, 7) for one observation, in the environment's convention."""

    def _end(self, episode: EpisodeSpec, outcome: Any) -> None:  # noqa: B027
        """Tell the server that the episode ended, where the protocol has a message for it."""


def api_key() -> str | None:
    """The key for the server, from the environment."""
    return os.environ.get(API_KEY) or None


def rows(actions: Any, what: str = "actions") -> np.ndarray:
    """Actions (n, 7) or (7,) of a reply as an own array (n, 7), float64. Raises PolicyFault for another shape."""
    try:
        found = np.array(actions, dtype=np.float64)
    except (TypeError, ValueError):
        raise PolicyFault(f"answered {what} that are no array of numbers") from None
    if found.ndim == 1:
        found = found[None]
    if found.ndim != 2 or found.shape[1] != ACTION_DIM or not len(found):
        raise PolicyFault(f"answered {what} of shape {np.shape(actions)} instead of (n, {ACTION_DIM})")
    return found


def binary_gripper(chunk: np.ndarray) -> np.ndarray:
    """The chunk with its gripper from [0, 1], 1 = open, to the environment's: above 0.5 it opens (-1), else it closes
    (+1). Never 0, which would stop the fingers half open. NaN stays, for the guard to find."""
    gripper = chunk[:, 6]
    chunk[:, 6] = np.where(np.isnan(gripper), np.nan, np.where(gripper > 0.5, -1.0, 1.0))
    return chunk


def mapping(message: Any, what: str) -> dict[str, Any]:
    """The message, which must be a map. Raises WireError."""
    if not isinstance(message, dict):
        raise WireError(f"{what} is a {type(message).__name__}, not a map")
    return message


def wrong_server(address: Address, protocol: str, found: str) -> UserError:
    """For a server that speaks, but not this protocol."""
    return UserError(f"{address.url} is no {protocol} server: {one_line(found, 300)}.")
