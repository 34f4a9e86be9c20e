"""One policy for many rollout workers: requests that arrive together form one batch."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from apt_bench.core.errors import ServerLost, UserError
from apt_bench.envs.base import Observation, Outcome
from apt_bench.policies.base import Policy
from apt_bench.policies.guard import guard
from apt_bench.suites import EpisodeSpec

WINDOW = 0.005
"""Seconds that a request waits for others to join its batch, unless the batch is full before."""

LOST_IN_A_ROW = 2
"""After this many lost requests in a row the server counts as lost; before, the fault may lie with one request."""

Request = tuple[str, Any]
"""("act", Observation), ("reset", EpisodeSpec) or ("finish", (EpisodeSpec, Outcome))."""

Reply = tuple[Any, float]  # answer or exception, seconds of the policy


class Batcher:
    """Answers requests from many threads with one thread that owns the policy.

    Args:
        policy: The policy.
        clients: How many requests can wait at once. A batch of this size is answered at once.
        window: Seconds that a smaller batch waits for more requests.
    """

    def __init__(self, policy: Policy, clients: int, window: float = WINDOW) -> None:
        self._policy = guard(policy)
        self.expect(clients)
        self._window = window
        self._requests: queue.Queue[tuple[Request, Future[Reply]]] = queue.Queue()
        self.batches = 0  # served, for tests and benchmarks
        self._lost: list[ServerLost] = []  # since the last answer
        threading.Thread(target=self._serve, name="policy", daemon=True).start()

    def expect(self, clients: int) -> None:
        """Change how many requests can wait at once."""
        self._full = max(1, min(clients, self._policy.spec.resources.max_batch))

    @property
    def server_lost(self) -> bool:
        """Whether the policy's server or the connection to it is lost."""
        return len(self._lost) >= LOST_IN_A_ROW

    def reset(self, episode: EpisodeSpec) -> Reply:
        """Call `Policy.reset` for one episode, between two batches."""
        return self._request(("reset", episode))

    def finish(self, episode: EpisodeSpec, outcome: Outcome) -> Reply:
        """Call `Policy.finish` and `Policy.notes` for one episode, between two batches; the answer is its notes."""
        return self._request(("finish", (episode, outcome)))

    def act(self, observation: Observation) -> Reply:
        """Call `Policy.act` for one observation, batched with others."""
        return self._request(("act", observation))

    def _request(self, request: Request) -> Reply:
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
        for (kind, content), future in batch:
            if kind == "reset":
                self._settle([future], lambda: self._reset(content))  # noqa: B023
            elif kind == "finish":
                self._settle([future], lambda: [self._policy.finish(*content)])  # noqa: B023
        requests = [(observation, future) for (kind, observation), future in batch if kind == "act"]
        if not requests:
            return
        observations, futures = [o for o, _ in requests], [f for _, f in requests]
        self.batches += 1
        if len(requests) > 1 and self._settle(futures, lambda: self._act(observations), final=False):
            return
        for observation, future in requests:  # one bad observation must not fail the others of the batch
            if len(requests) > 1 and self.server_lost:  # do not wait for a lost server again
                future.set_result((self._lost[-1], 0.0))
            else:
                self._settle([future], lambda: self._act([observation]))  # noqa: B023

    def _reset(self, episode: EpisodeSpec) -> list[None]:
        self._policy.reset([episode])
        return [None]

    def _act(self, observations: Sequence[Observation]) -> Sequence[Any]:
        answers = self._policy.answers(observations)
        self._lost.clear()
        return answers

    def _settle(
        self, futures: list[Future[Reply]], call: Callable[[], Sequence[Any]], final: bool = True
    ) -> bool:
        """Answer the futures with the results of the call or with its exception. Unless `final`, a UserError (a
        PolicyFault is one) and a ServerLost leave them unanswered. No exception may end this thread, because the
        callers would wait forever."""
        start = time.perf_counter()
        try:
            answers = call()
        except BaseException as error:
            if isinstance(error, UserError | ServerLost) and not final:
                return False
            if isinstance(error, ServerLost):
                self._lost.append(error)
            answers = [error] * len(futures)
        seconds = time.perf_counter() - start
        for future, answer in zip(futures, answers, strict=True):
            future.set_result((answer, seconds))
        return True
