"""Which episode a worker runs next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from apt_bench.suites import EpisodeKey, EpisodeSpec


class Schedule:
    """A worker keeps its group (a compiled model), then takes the largest group that nobody works on, and only then
    steals from the tail of the largest that is left. Episodes that failed for the machinery's fault come again, up to
    `attempts` times in all."""

    def __init__(self, specs: Iterable[EpisodeSpec], attempts: int) -> None:
        self._groups: dict[str, deque[EpisodeSpec]] = {}
        self.add(specs)
        self._attempts = attempts
        self._tried: dict[EpisodeKey, int] = {}
        self._holds: dict[int, str] = {}

    def add(self, specs: Iterable[EpisodeSpec]) -> None:
        """Queue more episodes."""
        for spec in specs:
            self._groups.setdefault(spec.group, deque()).append(spec)

    def __len__(self) -> int:
        return sum(len(q) for q in self._groups.values())

    def next(self, worker: int) -> tuple[EpisodeSpec, int] | None:
        """The worker's next episode and the number of this attempt; None when nothing waits."""
        left = {group: q for group, q in self._groups.items() if q}
        if not left:
            return None
        mine = self._holds.get(worker)
        if mine not in left:
            others = {g for w, g in self._holds.items() if w != worker}
            mine = max(left, key=lambda g: (g not in others, len(left[g])))
        stealing = mine in {g for w, g in self._holds.items() if w != worker}
        self._holds[worker] = mine
        spec = left[mine].pop() if stealing else left[mine].popleft()
        self._tried[spec.key] = self._tried.get(spec.key, 0) + 1
        return spec, self._tried[spec.key]

    def retry(self, spec: EpisodeSpec) -> bool:
        """Queue the episode again; False where its attempts are used up."""
        if self._tried[spec.key] >= self._attempts:
            return False
        self._groups[spec.group].appendleft(spec)
        return True
