"""What all policies behind a server share: the choice of a server, the run of an episode, chunks, latency."""

from __future__ import annotations

import hashlib
import json
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
from apt_bench.policies.base import Interface, PolicySpec, Provenance, Resources
from apt_bench.policies.preprocessing import prepared
from apt_bench.policies.remote.links import Address, Link, addresses
from apt_bench.suites import EpisodeSpec
from apt_bench.wire.arrays import WireError

API_KEY = "APT_BENCH_API_KEY"
"""Environment variable of the key that a server may want. It is recorded nowhere."""

CONNECTING_SECONDS = 100.0
"""After this time no further server is tried: a run kills a silent worker after 180 s."""


class ErrorReply(ServerLost):
    """The server answered one request with an error. The connection can be used for the next one."""


class RemotePolicy(ABC):
    """A policy on the other side of one connection, usually one per rollout worker.

    Args:
        server: Addresses of servers that serve the same policy. The first that greets is used; `PolicyRef` gives each
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
    interface = Interface()

    def __init__(self, server: str | Sequence[str], horizon: int, execute: int) -> None:
        self._horizon, self._execute = horizon, execute
        self._ms: dict[str, dict[str, list[float]]] = {}  # times by episode, and by what was measured
        self._asking: Sequence[str] = ()  # episodes of the present request
        self.address, self.metadata = self._connect(addresses(server, self.schemes, self.port))

    @classmethod
    def resources(cls, **args: Any) -> Resources:
        """Where a policy with these arguments runs. A run needs it before it makes the policy."""
        return Resources(placement="worker")

    def _connect(self, servers: Sequence[Address]) -> tuple[Address, Any]:
        lost: list[str] = []
        start = time.monotonic()
        for address in servers:
            if time.monotonic() - start > CONNECTING_SECONDS:
                break
            try:
                return address, self._greeted(address)
            except ServerLost as error:
                lost.append(str(error))
        raise ServerLost("; ".join(lost[:4]) + (f"; and {len(lost) - 4} more" if len(lost) > 4 else ""))

    def _greeted(self, address: Address) -> Any:
        """Open a link to this server. Returns its metadata."""
        self.address, self._link = address, self._open(address)
        try:
            return jsonable(self._called(self._greet), bounded=True)
        except BaseException:
            self._link.close()
            raise

    @property
    def spec(self) -> PolicySpec:
        """The declaration. The server's metadata are its provenance; the address is not recorded."""
        return PolicySpec(
            type(self).__name__,
            cameras=self.cameras,
            horizon=self._horizon,
            execute=min(self._execute, self._horizon),
            resources=self._resources(),
            provenance=Provenance(weights=self._source(), about={"server": self.metadata}),
            interface=self.interface,
        )

    def _resources(self) -> Resources:
        return self.resources()

    def _source(self) -> str | None:
        """The checkpoint's name and a digest of the server's metadata. A resumed run compares it."""
        if not self.metadata:
            return self._weights()
        text = json.dumps(self.metadata, sort_keys=True)
        digest = f"metadata {hashlib.sha256(text.encode()).hexdigest()[:12]}"
        return ", ".join(filter(None, (self._weights(), digest)))

    def _weights(self) -> str | None:
        """The checkpoint's name, where the metadata have it."""
        return None

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """One episode begins. Where the server has closed the connection since the last one, as servers do whose
        keepalive pings a busy client answers late, it is opened again.
        """
        if len(episodes) != 1:
            raise PolicyFault("starts one episode at a time")
        if not self._ms and not self._link.is_open() and self._greeted(self.address) != self.metadata:
            self._link.close()
            raise ServerLost(f"{self.address.url} has other metadata than before")
        self._ms[episodes[0].id] = {}
        self._called(lambda: self._begin(episodes[0]))

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """One request per observation."""
        return [self._asked([one], lambda: [self._infer(one)])[0] for one in observations]  # noqa: B023

    def finish(self, episode: EpisodeSpec, outcome: Any) -> None:
        """The episode ended."""
        self._called(lambda: self._end(episode, outcome))

    def notes(self, episode: EpisodeSpec) -> Mapping[str, Any]:
        """Number of the episode's requests, and their times in ms, median and largest: `request_ms` from sending it
        to its reply, `infer_ms` as the server reports it."""
        times = self._ms.pop(episode.id, {})
        found: dict[str, Any] = {"requests": len(times.get("request_ms", ()))} if times else {}
        for name, values in times.items():
            found |= {name: round(float(np.median(values)), 2), f"{name}_max": round(max(values), 2)}
        return found

    def _took(self, name: str, ms: Any) -> None:
        """Note a time of one request; what is no number is ignored."""
        if isinstance(ms, int | float | np.number) and np.isfinite(ms):
            for episode in self._asking:
                self._ms.setdefault(episode, {}).setdefault(name, []).append(float(ms))

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def _image(self, observation: Observation, camera: str) -> np.ndarray:
        """The camera's image as the server gets it."""
        return prepared(observation.images[camera], self.interface.resize, self.interface.image_size)

    def _asked(
        self, observations: Sequence[Observation], ask: Callable[[], Sequence[np.ndarray]]
    ) -> list[np.ndarray]:
        """The chunks that one request for these observations answers."""
        self._asking = [observation.episode for observation in observations]
        start = time.perf_counter()
        chunks = [GRIPPERS[self.interface.gripper](chunk) for chunk in self._called(ask)]
        self._took("request_ms", 1000 * (time.perf_counter() - start))
        for chunk in chunks:
            self._fits(chunk)
        return chunks

    def _fits(self, chunk: np.ndarray) -> None:
        """Raise PolicyFault for a chunk that is longer than the horizon, or shorter than what is executed of it."""
        if len(chunk) > self._horizon:
            raise PolicyFault(
                f"answered {len(chunk)} actions, and its horizon is {self._horizon}: use --policy-arg "
                f"horizon={len(chunk)}, and execute for how many of them are executed"
            )
        if len(chunk) < min(self._execute, self._horizon):
            raise PolicyFault(
                f"answered {len(chunk)} actions, fewer than the {min(self._execute, self._horizon)} that are executed "
                f"of each chunk: use --policy-arg execute={len(chunk)}"
            )

    def _called(self, call: Callable[[], Any]) -> Any:
        """The call's result. A message that does not follow the protocol counts as a lost server."""
        try:
            return call()
        except WireError as error:
            self._link.close()
            raise ServerLost(
                f"{self.address.url} sent what is no message of its protocol: {error}"
            ) from error
        except ErrorReply:
            raise
        except ServerLost:
            self._link.close()
            raise

    @abstractmethod
    def _open(self, address: Address) -> Link:
        """A link to the server. Raises ServerLost where no server answers."""

    def _greet(self) -> Mapping[str, Any]:
        """Exchange the protocol's first messages and return the server's metadata."""
        return {}

    def _begin(self, episode: EpisodeSpec) -> None:  # noqa: B027
        """Tell the server that an episode begins, where the protocol has a message for it."""

    @abstractmethod
    def _infer(self, observation: Observation) -> np.ndarray:
        """The chunk (n, 7) for one observation; its gripper is in the convention of `interface`."""

    def _end(self, episode: EpisodeSpec, outcome: Any) -> None:  # noqa: B027
        """Tell the server that the episode ended, where the protocol has a message for it."""


def api_key() -> str | None:
    """The key for the server, from the environment."""
    return os.environ.get(API_KEY) or None


def numbers(found: Any, what: str = "actions") -> np.ndarray:
    """The numbers of a reply as an own array, float64. Raises PolicyFault for anything else, text and booleans too."""
    try:
        array = np.asarray(found)
    except (TypeError, ValueError):  # lists of different lengths
        raise PolicyFault(f"answered {what} that are no array of numbers") from None
    if array.dtype.kind not in "iuf":
        raise PolicyFault(f"answered {what} that are no array of numbers, but of {array.dtype}")
    return array.astype(np.float64)


def rows(actions: Any, what: str = "actions") -> np.ndarray:
    """Actions (n, 7) or (7,) of a reply as an own array (n, 7), float64. Raises PolicyFault for another shape."""
    array = numbers(actions, what)
    found = array[None] if array.ndim == 1 else array
    if found.ndim != 2 or found.shape[1] != ACTION_DIM or not len(found):
        raise PolicyFault(f"answered {what} of shape {array.shape} instead of (n, {ACTION_DIM})")
    return found


def binary_gripper(chunk: np.ndarray) -> np.ndarray:
    """The chunk with its gripper from [0, 1], 1 = open, to the environment's: above 0.5 it opens (-1), else it closes
    (+1). Never 0, which would stop the fingers half open. NaN and infinity stay, for the guard to find."""
    gripper = chunk[:, 6]
    chunk[:, 6] = np.where(np.isfinite(gripper), np.where(gripper > 0.5, -1.0, 1.0), gripper)
    return chunk


def inverted_gripper(chunk: np.ndarray) -> np.ndarray:
    """The chunk with the opposite gripper."""
    chunk[:, 6] *= -1
    return chunk


GRIPPERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "environment": lambda chunk: chunk,
    "inverted": inverted_gripper,
    "unit_open": binary_gripper,
}
"""`Interface.gripper` -> the conversion of a chunk to the environment's convention."""


def mapping(message: Any, what: str) -> dict[str, Any]:
    """The message, which must be a map. Raises WireError."""
    if not isinstance(message, dict):
        raise WireError(f"{what} is a {type(message).__name__}, not a map")
    return message


def wrong_server(address: Address, protocol: str, found: str) -> UserError:
    """The error for a server of another protocol."""
    return UserError(f"{address.url} is no {protocol} server: {one_line(found, 300)}.")
