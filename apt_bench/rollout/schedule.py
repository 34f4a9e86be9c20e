"""The queue of episodes: which one a worker runs next."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

from apt_bench.suites import EpisodeKey, EpisodeSpec


class Job(NamedTuple):
    """One attempt at an episode. `run`: index of its run among those that share the workers."""

    spec: EpisodeSpec
    attempt: int = 1
    run: int = 0


class Schedule:
    """Assigns episodes to workers, so that a worker rarely compiles a new scene.

    A worker stays with its group of episodes (one compiled model). Then it takes the largest group that no worker has;
    if every group has one, it takes from the end of the largest. An episode that ended in an infrastructure error is
    queued again, up to `attempts` attempts in all.
    """

    def __init__(self, specs: Iterable[EpisodeSpec], attempts: int) -> None:
        self._groups: dict[str, deque[tuple[int, EpisodeSpec]]] = {}
        self.add(specs)
        self._attempts = attempts
        self._tried: Counter[tuple[int, EpisodeKey]] = Counter()
        self._group_of: dict[int, str] = {}
        self._workers: Counter[str] = Counter()  # of each group
        self._begun: set[str] = set()
        self.current: dict[int, Job] = {}
        """Worker -> the episode that it was given last."""

    @property
    def scenes(self) -> tuple[int, int]:
        """Number of groups of which an episode has begun, and of all groups."""
        return len(self._begun), len(self._groups)

    def add(self, specs: Iterable[EpisodeSpec], run: int = 0) -> None:
        """Queue more episodes of a run."""
        for spec in specs:
            self._groups.setdefault(spec.group, deque()).append((run, spec))

    def __len__(self) -> int:
        return sum(len(q) for q in self._groups.values())

    def next(self, worker: int) -> Job | None:
        """The worker's next episode; None when the queue is empty."""
        mine = self._group_of.get(worker)
        if mine is None or not self._groups[mine]:
            left = [group for group, queue in self._groups.items() if queue]
            if not left:
                return None
            if mine is not None:
                self._workers[mine] -= 1
            mine = max(left, key=lambda g: (not self._workers[g], len(self._groups[g])))
            self._workers[mine] += 1
            self._group_of[worker] = mine
        queue = self._groups[mine]
        run, spec = queue.pop() if self._workers[mine] > 1 else queue.popleft()
        self._tried[run, spec.key] += 1
        self._begun.add(mine)
        self.current[worker] = job = Job(spec, self._tried[run, spec.key], run)
        return job

    def retry(self, job: Job) -> bool:
        """Queue the episode again. Returns False where its attempts are used up."""
        if self._tried[job.run, job.spec.key] >= self._attempts:
            return False
        self._groups[job.spec.group].appendleft((job.run, job.spec))
        return True
