"""Which worker gets which episode when machines are missing, join late or die. Ray is replaced by a small copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout import engine
from apt_bench.rollout.engine import RayPool
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.workers import Result, Settings
from apt_bench.suites import load_suite
from tests.runs import record
from tests.toy import PushPolicy

SETTINGS = Settings(PolicyRef("push", "tests.toy:PushPolicy"), PushPolicy.spec, 3)


class Reference:
    """A pending result. Its value is an exception where the actor died."""

    def __init__(self, actor: Actor, make: Callable[[], Any]) -> None:
        self.actor, self._make = actor, make

    @property
    def ready(self) -> bool:
        return self.actor.dead or self.actor.placed

    def value(self) -> Any:
        return RayActorError() if self.actor.dead else self._make()


class Actor:
    placed = dead = False

    def __init__(self) -> None:
        beat = SimpleNamespace(remote=lambda: Reference(self, lambda: (0, "env")))
        self.heartbeat = SimpleNamespace(options=lambda **_: beat)
        self.run = SimpleNamespace(remote=self._run)

    def _run(self, spec: Any, attempt: int, run: int, host: Any) -> Reference:
        return Reference(
            self, lambda: (self, Result(record(spec.key.cell, spec.key.task, spec.key.init, True)))
        )


@dataclass
class SmallRay:
    """Places as many living actors as there are cores, in the order in which they were made."""

    cores: int
    actors: list[Actor] = field(default_factory=list)
    started: int = 0

    def remote(self, **_: Any) -> Any:
        return lambda kind: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._make))

    def _make(self, *_: Any) -> Actor:
        self.actors.append(Actor())
        return self.actors[-1]

    def wait(
        self, pending: list[Reference], num_returns: int = 1, timeout: float = 0
    ) -> tuple[list[Any], list[Any]]:
        living = [a for a in self.actors if not a.dead]
        for actor in living[: self.cores]:
            actor.placed = True
        return [r for r in pending if r.ready][:num_returns], []

    def get(self, reference: Reference) -> Any:
        value = reference.value()
        if isinstance(value, Exception):
            raise value
        self.started = max(self.started, sum(a.placed and not a.dead for a in self.actors))
        return value[1] if isinstance(value[0], Actor) else value

    def kill(self, actor: Actor) -> None:
        actor.dead = True


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], SmallRay]:
    def make(cores: int) -> SmallRay:
        made = SmallRay(cores)
        for name in ("remote", "wait", "get", "kill"):
            monkeypatch.setattr(ray, name, getattr(made, name))
        return made

    monkeypatch.setattr(engine, "check_alive", lambda now=False: None)
    return make


def specs() -> list[Any]:
    return list(load_suite("tests/toy_suite.yaml").select(["push"], episodes=8))


def test_workers_without_a_core_hold_no_episode(small):
    cluster = small(2)
    pool = RayPool(5, [SETTINGS], [[]], 60)
    keys = [s.key for (s, _, _), result in pool.stream(Schedule(specs(), 1), lambda: False) if result.record]
    assert sorted(map(str, keys)) == sorted(str(s.key) for s in specs())
    assert len(cluster.actors) == 5
    assert cluster.started == 2
    assert all(actor.dead for actor in cluster.actors), "the end of the run ends every worker"


def test_a_machine_that_joins_late_takes_part(small):
    cluster = small(1)
    done = 0
    for _, result in RayPool(3, [SETTINGS], [[]], 60).stream(Schedule(specs(), 1), lambda: False):
        assert result.record
        done += 1
        if done == 2:
            assert cluster.started == 1
            cluster.cores = 3
    assert done == 16
    assert cluster.started == 3


def test_an_episode_of_a_dead_machine_runs_again_elsewhere(small):
    cluster = small(2)
    schedule = Schedule(specs(), 2)
    pool, lost, attempts = RayPool(2, [SETTINGS], [[]], 60), [], {}
    for job, result in pool.stream(schedule, lambda: False):
        spec = job.spec
        if result.error:
            assert result.error == "worker 1 died"
            lost.append(spec.key)
            assert schedule.retry(job)
            continue
        attempts[spec.key] = job.attempt
        if len(attempts) == 3 and not lost:
            cluster.cores = 1  # the machine of worker 1 is lost, and no other replaces it
            cluster.actors[1].dead = True
    assert len(lost) == 1
    assert attempts == {s.key: 1 + (s.key in lost) for s in specs()}
    assert len(cluster.actors) == 3
    assert not cluster.actors[2].placed, "the new worker waits for a core"


def test_a_process_that_never_starts_is_replaced_without_an_episode(small):
    cluster = small(1)
    pool = RayPool(2, [SETTINGS], [[]], 60)
    stream = pool.stream(Schedule(specs(), 1), lambda: False)
    next(stream)
    pool._start_again(engine.START_SECONDS + 1)
    assert [a.dead for a in cluster.actors] == [False, True, False]
    results = [result for _, result in stream]
    assert len(results) == 15
    assert all(r.record for r in results)


def test_results_that_arrive_together_are_marked(small):
    small(4)
    marks = [r.more for _, r in RayPool(4, [SETTINGS], [[]], 60).stream(Schedule(specs(), 1), lambda: False)]
    assert marks == [True, True, True, False] * 4
