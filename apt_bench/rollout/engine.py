"""Where episodes run: in this process, or in Ray actors. Both give the same stream of (episode, attempt, result)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt_bench.core.errors import UserError
from apt_bench.policies.base import Policy, PolicySpec
from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout.identity import cores, free_memory_gb
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.workers import (
    ONE_THREAD,
    Interrupted,
    PolicyHost,
    Result,
    RolloutActor,
    RolloutWorker,
    Settings,
)
from apt_bench.suites import EpisodeSpec

Stream = Generator[tuple[EpisodeSpec, int, Result]]

TICK = 0.25
"""Seconds between two looks at the clock: how soon a stop or a hang is noticed."""

WORKER_GB = 4.5
RESERVE_GB = 2.0
"""A LIBERO worker that renders holds up to 4 GB: the three compiled scenes it caches, with their GL contexts."""


def auto_workers(cores: float, free_gb: float) -> int:
    """One worker per core, as far as memory goes: 4.5 GB each, 2 GB left to the rest of the machine."""
    return max(1, min(int(cores), int((free_gb - RESERVE_GB) / WORKER_GB)))


def run_local(
    schedule: Schedule, settings: Settings, stopped: Callable[[], bool], policy: Policy | None = None
) -> Stream:
    """One worker in this process: for debugging, and where Ray cannot run. Nothing watches for a hang."""
    worker = RolloutWorker(settings, policy, stopped)
    try:
        while not stopped() and (job := schedule.next(0)):
            yield (*job, worker.run(*job))
    except Interrupted:
        return
    finally:
        worker.close()


@contextmanager
def ray_session(address: str | None, asked: int | None, episodes: int) -> Iterator[int]:
    """A quiet local Ray, gone afterwards with its files; or the cluster at `address`, which stays.

    asked: rollout workers, None = as many as fit. Yields their number, at most one per episode.
    """
    if asked is None and not address:
        asked = auto_workers(cores(), free_memory_gb())
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves workers beside other work
    for name, value in ONE_THREAD.items():
        os.environ.setdefault(name, value)
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    with ExitStack() as stack:
        try:
            if address:
                ray.init(address=address, **quiet)
            else:
                assert asked is not None
                ray.init(
                    address="local",
                    # One more than there are workers: never wait for a core that the machine does not have.
                    num_cpus=min(asked, episodes) + 1,
                    include_dashboard=False,
                    object_store_memory=256 * 2**20,
                    _temp_dir=stack.enter_context(_reaped_folder()),
                    **quiet,
                )
        except Exception as error:  # Ray raises bare ones, too
            where = f"join the Ray cluster at '{address}'" if address else "start Ray on this machine"
            raise UserError(f"Cannot {where}: {error}. Use --workers 0 to run without it.") from None
        stack.callback(ray.shutdown)
        if asked is None:
            there = ray.cluster_resources()
            asked = auto_workers(there.get("CPU", 1), there.get("memory", 0) / 2**30)
        yield min(asked, episodes)


@contextmanager
def _reaped_folder() -> Iterator[str]:
    """A folder for Ray's files. A process of its own removes it, and whoever still uses it, when this one is gone."""
    folder = tempfile.mkdtemp(prefix="apt-bench-ray-")
    reaper = subprocess.Popen(
        [sys.executable, "-S", "-E", Path(__file__).with_name("reaper.py"), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    try:
        yield folder
    finally:
        assert reaper.stdin
        reaper.stdin.close()
        reaper.wait(30)


class PolicyActor:
    """A policy's process, started again whenever it is lost."""

    def __init__(self, ref: PolicyRef, clients: int, path: str) -> None:
        self._ref, self._clients, self._path = ref, clients, path
        self._start()

    def spec(self) -> PolicySpec:
        """Wait until the policy is loaded. Raises UserError where it cannot be."""
        import ray

        try:
            answer: PolicySpec | str = ray.get(self.handle.ready.remote())
        except ray.exceptions.RayError as error:
            raise UserError(f"Policy '{self._ref.name}' died while it was loaded: {error}") from None
        if isinstance(answer, str):
            raise UserError(answer)
        return answer

    def ensure(self) -> None:
        """Come back only when the policy answers."""
        import ray

        try:
            ray.get(self.handle.ready.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            self.kill()
            self._start()
            self.spec()

    def kill(self) -> None:
        """End the process, and with it every call that waits for it."""
        import ray

        ray.kill(self.handle)

    def _start(self) -> None:
        import ray

        remote: Any = ray.remote  # typed for decorators only
        actor = remote(PolicyHost).options(
            num_cpus=0, num_gpus=self._ref.num_gpus, max_concurrency=self._clients + 2
        )
        self.handle: Any = actor.remote(self._ref, self._clients, self._path)


def policy_actors(ref: PolicyRef, workers: int, path: str) -> list[PolicyActor]:
    """One actor, or as many as the GPUs hold. They load side by side. Raises UserError where there are too few GPUs."""
    import ray

    number = 1
    if ref.num_gpus:
        there = ray.cluster_resources().get("GPU", 0)
        number = min(workers, int(there // ref.num_gpus))
        if not number:
            raise UserError(f"Policy '{ref.name}' needs {ref.num_gpus:g} GPU(s); Ray sees {there:g} here.")
    return [PolicyActor(ref, -(-workers // number), path) for _ in range(number)]


STARTING = (-1, "start")
START_SECONDS = 180.0
"""What an actor may take to come up, on a loaded machine or a far cluster."""


@dataclass
class _Slot:
    """A rollout worker, what it is doing, and for how long it has shown no sign of life."""

    index: int
    actor: Any
    job: tuple[EpisodeSpec, int] | None = None
    host: Any = None  # the policy actor that it was told to ask
    quiet: float = 0.0  # seconds
    beats: tuple[int, str] = STARTING
    asked: Any = None  # a heartbeat question that is under way
    hung: bool = False  # it was killed for its silence


class RayPool:
    """Rollout workers as actors, asked for one episode at a time."""

    def __init__(
        self, workers: int, settings: Settings, policies: Sequence[PolicyActor], hang_seconds: float
    ) -> None:
        import ray

        self._settings, self._policies, self._hang = settings, policies, hang_seconds
        remote: Any = ray.remote
        self._actor = remote(concurrency_groups={"beat": 1})(RolloutActor).options(num_cpus=1)
        self._slots = [_Slot(i, self._actor.remote(settings)) for i in range(workers)]
        self._running: dict[Any, _Slot] = {}
        self._looked = time.monotonic()

    def stream(self, schedule: Schedule, stopped: Callable[[], bool]) -> Stream:
        """Results as they come. The caller puts episodes that must run again back on the schedule."""
        import ray

        try:
            while not stopped():
                for slot in self._slots:
                    if slot.job is None and (job := schedule.next(slot.index)):
                        self._submit(slot, job)
                if not self._running:
                    return
                ready, _ = ray.wait(list(self._running), timeout=TICK)
                for reference in ready:
                    slot = self._running.pop(reference)
                    spec, attempt = slot.job  # type: ignore[misc]
                    slot.job = None
                    yield spec, attempt, self._result(slot, reference)
                self._watch()
        finally:
            for slot in self._slots:
                ray.kill(slot.actor)

    def _policy(self, slot: _Slot) -> PolicyActor | None:
        return self._policies[slot.index % len(self._policies)] if self._policies else None

    def _submit(self, slot: _Slot, job: tuple[EpisodeSpec, int]) -> None:
        policy = self._policy(slot)
        slot.job, slot.quiet, slot.host = job, 0.0, policy and policy.handle
        self._running[slot.actor.run.remote(*job, slot.host)] = slot

    def _result(self, slot: _Slot, reference: Any) -> Result:
        import ray

        try:
            result: Result = ray.get(reference)
        except ray.exceptions.RayActorError:
            why = "showed no sign of life and was killed" if slot.hung else "died"
            result = Result(error=f"worker {slot.index} {why}")
        except ray.exceptions.RayError as error:
            result = Result(error=f"worker {slot.index}: {type(error).__name__}: {error}")
        if result.policy_lost and (policy := self._policy(slot)):
            policy.ensure()
        elif result.error:  # whatever the worker holds is not to be trusted any more
            ray.kill(slot.actor)
            slot.actor = self._actor.remote(self._settings)
            slot.beats, slot.asked, slot.hung = STARTING, None, False
        return result

    def _watch(self) -> None:
        """Kill what has shown no sign of life for too long: the worker, or the policy that it waits for."""
        import ray

        now = time.monotonic()
        # While this process was busy itself (starting a policy again) it heard nothing: that is nobody's silence.
        passed, self._looked = min(now - self._looked, 4 * TICK), now
        for slot in self._running.values():
            if slot.asked is not None and ray.wait([slot.asked], timeout=0)[0]:
                try:
                    beats = ray.get(slot.asked)
                except ray.exceptions.RayError:
                    beats = slot.beats  # it died; its episode's own reference says so
                if beats != slot.beats:
                    slot.beats, slot.quiet = beats, 0.0
                slot.asked = None
            slot.quiet += passed
            if slot.asked is None and slot.quiet > self._hang / 4:
                slot.asked = slot.actor.beat.options(concurrency_group="beat").remote()
            limit = max(self._hang, START_SECONDS) if slot.beats == STARTING else self._hang
            if slot.quiet > limit:
                slot.quiet = 0.0
                policy = self._policy(slot)
                if policy and slot.beats[1] == "policy":
                    if policy.handle is slot.host:  # not one that was started again meanwhile
                        policy.kill()
                else:
                    slot.hung = True
                    ray.kill(slot.actor)
