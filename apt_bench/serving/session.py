"""The episodes of one client, and its requests to the policy."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from apt_bench.core.errors import PolicyFault, UserError
from apt_bench.envs.base import AGENTVIEW, WRIST, Observation, Outcome
from apt_bench.policies.base import PolicySpec
from apt_bench.policies.guard import GuardedPolicy
from apt_bench.rollout.batching import Batcher
from apt_bench.serving.episodes import Episodes, Said
from apt_bench.suites import EpisodeSpec

CAMERAS = (AGENTVIEW, WRIST)
"""The cameras whose images the protocols have."""


class ServedPolicy:
    """A policy and what all of its clients share.

    Args:
        policy: The policy.
        episodes: Finds the episodes of clients.

    Raises:
        UserError: The policy cannot be served.
    """

    def __init__(self, policy: GuardedPolicy, episodes: Episodes) -> None:
        self.spec: PolicySpec = policy.spec
        check_servable(self.spec)
        self.episodes = episodes
        self.batcher = Batcher(policy, clients=1)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._running: set[str] = set()  # ids of episodes
        self._clients = 0

    def connect(self, protocol: str) -> Session:
        """A new client."""
        with self._lock:
            self._count(+1)
            return Session(self, protocol, next(self._numbers))

    def disconnect(self) -> None:
        """A client has disconnected."""
        with self._lock:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._clients += change
        self.batcher.expect(self._clients)

    def take(self, episode: str) -> bool:
        """Mark an episode as running. Returns False where another client runs it."""
        with self._lock:
            free = episode not in self._running
            self._running.add(episode)
            return free

    def release(self, episode: str) -> None:
        """The episode has ended."""
        with self._lock:
            self._running.discard(episode)


def check_servable(spec: PolicySpec) -> None:
    """Raise UserError for a policy that needs more than a client can send."""
    if spec.privileged:
        raise UserError(
            f"Policy '{spec.name}' cannot be served: it reads the simulator's state, which no client sends. "
            "Use it with apt-bench run."
        )
    if others := [name for name in spec.cameras if name not in CAMERAS]:
        raise UserError(
            f"Policy '{spec.name}' cannot be served: it needs the camera '{others[0]}'. Clients send "
            f"{' and '.join(CAMERAS)} only."
        )


class Session:
    """One client. Its thread calls these methods; `ServedPolicy.connect` makes it."""

    def __init__(self, served: ServedPolicy, protocol: str, connection: int) -> None:
        self.served, self.protocol, self.connection = served, protocol, connection
        self._number = 0
        self._episode: EpisodeSpec | None = None

    @property
    def running(self) -> bool:
        """Whether an episode has begun and not ended."""
        return self._episode is not None

    def begin(self, said: Said) -> None:
        """Start an episode. One that still runs is ended first.

        Raises:
            UserError, ServerLost: The policy cannot start it.
        """
        self.end()
        spec, self._cameras = self.served.episodes.find(said, self.protocol, self.connection, self._number)
        if not self.served.take(
            spec.id
        ):  # another client runs it now: policies tell episodes apart by their ids
            key = dataclasses.replace(spec.key, prompt=f"{spec.key.prompt}@connection{self.connection}")
            spec = dataclasses.replace(spec, key=key)
            self.served.take(spec.id)
        self._number += 1
        self._episode = spec
        try:
            self._checked(self.served.batcher.reset(spec))
        except BaseException:
            self._drop(spec)
            raise

    def chunk(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, instruction: str, step: int
    ) -> np.ndarray:
        """The policy's chunk (n, 7) for an observation of the running episode.

        Raises:
            UserError, ServerLost: The policy cannot answer, or its answer is invalid.
        """
        spec = self._episode
        assert spec is not None
        observation = Observation(
            images=images,
            state=state,
            instruction=instruction,
            episode=spec.id,
            step=step,
            cameras=self._cameras(state),
            noise_key=spec.noise_key,
        )
        chunk: np.ndarray = self._checked(self.served.batcher.act(observation))
        return chunk

    def end(self, success: bool = False, steps: int = 0, done: bool = False) -> None:
        """End the episode that runs, if any. done: the client reported how it ended."""
        if (spec := self._episode) is not None:
            self.served.batcher.finish(spec, Outcome(success, done, steps, "", ""))
            self._drop(spec)

    def close(self) -> None:
        """The client has disconnected."""
        self.end()
        self.served.disconnect()

    def _drop(self, spec: EpisodeSpec) -> None:
        self.served.release(spec.id)
        self._episode = None

    def _checked(self, reply: tuple[Any, float]) -> Any:
        """The answer of the batcher. Raises it where it is an exception."""
        answer, _ = reply
        if isinstance(answer, PolicyFault):
            raise UserError(f"Policy '{self.served.spec.name}' {answer}") from answer
        if isinstance(answer, BaseException):
            raise answer
        return answer
