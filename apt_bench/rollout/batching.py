"""One policy for many rollout workers: requests that arrive together are answered as one batch."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from apt_bench.core.errors import PolicyFault, ServerLost
from apt_bench.envs.base import Observation
from apt_bench.policies.base import Policy
from apt_bench.policies.guard import guard

WINDOW = 0.005
"""Seconds a request waits for company, unless every worker has asked already."""

GONE = 2
"""So many requests lost one after the other: it is the server, and not one episode's request."""

Request = tuple[str, Any]  # ("act", Observation) or ("reset", EpisodeKey.id)
Reply = tuple[Any, float]  # answer (or the exception), seconds of the policy


class Batcher:
    """Serves `call` from many threads with one thread that owns the policy.

    clients: how many may be waiting at once; a batch that has them all does not wait for the window's end.
    """

    def __init__(self, policy: Policy, clients: int, window: float = WINDOW) -> None:
        self._policy = guard(policy)
        self._full = max(1, min(clients, self._policy.spec.resources.max_batch))
        self._window = window
        self._requests: queue.Queue[tuple[Request, Future[Reply]]] = queue.Queue()
        self.batches = 0  # served, for tests and benchmarks
        self._lost: list[ServerLost] = []  # since the last answer
        threading.Thread(target=self._serve, name="policy", daemon=True).start()

    @property
    def gone(self) -> bool:
        """Whether the policy's server is, or its connection."""
        return len(self._lost) >= GONE

    def reset(self, episode: str) -> Reply:
        """`Policy.reset` for one episode, between two batches."""
        return self._ask(("reset", episode))

    def act(self, observation: Observation) -> Reply:
        """`Policy.act` for one observation, batched with others."""
        return self._ask(("act", observation))

    def _ask(self, request: Request) -> Reply:
        future: Future[Reply] = Future()
        self._requests.put((request, future))
        return future.result()

    def _serve(self) -> None:
        while True:
            batch = [self._requests.get()]
            end = time.perf_counter() + self._window
            while len(batch) < self._full:
                try:
                    batch.append(self._requests.get(timeout=max(0.0, end - time.perf_counter())))
                except queue.Empty:
                    break
            self._answer(batch)

    def _answer(self, batch: Sequence[tuple[Request, Future[Reply]]]) -> None:
        for (kind, episode), future in batch:
            if kind == "reset":
                self._settle([future], lambda: self._reset(episode))  # noqa: B023
        asked = [(observation, future) for (kind, observation), future in batch if kind == "act"]
        if not asked:
            return
        observations, futures = [o for o, _ in asked], [f for _, f in asked]
        self.batches += 1
        if len(asked) > 1 and self._settle(futures, lambda: self._act(observations), final=False):
            return
        for observation, future in asked:  # one bad episode must not fail its neighbours
            if len(asked) > 1 and self.gone:  # nor keep them waiting for a server that does not answer
                future.set_result((self._lost[-1], 0.0))
            else:
                self._settle([future], lambda: self._act([observation]))  # noqa: B023

    def _reset(self, episode: str) -> list[None]:
        self._policy.reset([episode])
        return [None]

    def _act(self, observations: Sequence[Observation]) -> Sequence[Any]:
        answers = self._policy.answers(observations)
        self._lost.clear()
        return answers

    def _settle(
        self, futures: list[Future[Reply]], call: Callable[[], Sequence[Any]], final: bool = True
    ) -> bool:
        """Answer the futures with what the call gives or raises; unless final, leave a PolicyFault and a ServerLost
        unanswered. Nothing ends this thread: who asks would wait forever."""
        start = time.perf_counter()
        try:
            answers = call()
        except BaseException as error:
            if isinstance(error, PolicyFault | ServerLost) and not final:
                return False
            if isinstance(error, ServerLost):
                self._lost.append(error)
            answers = [error] * len(futures)
        seconds = time.perf_counter() - start
        for future, answer in zip(futures, answers, strict=True):
            future.set_result((answer, seconds))
        return True
