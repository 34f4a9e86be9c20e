"""Where episodes run: in this process, or in Ray actors. Both give the same stream of (episode, attempt, result)."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from apt_bench.core.errors import RayLost, UserError, describe_error
from apt_bench.core.text import one_line, say
from apt_bench.policies.base import Policy, PolicySpec
from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout.cluster import LOOK_SECONDS, START_SECONDS, check_alive
from apt_bench.rollout.cluster import auto_workers as auto_workers
from apt_bench.rollout.cluster import ray_session as ray_session
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.workers import Interrupted, PolicyHost, Result, RolloutActor, RolloutWorker, Settings
from apt_bench.suites import EpisodeSpec

Stream = Generator[tuple[EpisodeSpec, int, Result]]

TICK = 0.25
"""Seconds between two looks at the clock: how soon a stop or a hang is noticed."""


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


LOADS = 3
"""Times that a policy's process may die while it loads, before the run stops."""

STILL_SECONDS = 60.0
"""Between two notes that a policy is still loading: large weights take minutes, and nothing else is seen of it."""


class PolicyActor:
    """A policy's process, started again whenever it is lost."""

    def __init__(self, ref: PolicyRef, clients: int, path: str) -> None:
        self._ref, self._clients, self._path = ref, clients, path
        self._start()

    def spec(self) -> PolicySpec:
        """Wait until the policy is loaded. Raises UserError where it cannot be, RayLost where its process keeps dying
        meanwhile."""
        from ray.exceptions import RayError

        for load in range(1, LOADS + 1):
            try:
                answer = self._ready()
                break
            except RayError as error:
                check_alive(now=True)
                if load == LOADS:
                    raise RayLost(
                        f"The process of policy '{self._ref.name}' {_reason(error)} {LOADS} times while it loaded. "
                        "Has the machine memory enough for its weights? --workers 0 loads it in this process and shows "
                        "what it prints."
                    ) from None
                self._start()
        if isinstance(answer, str):
            raise UserError(answer)
        return answer

    def _ready(self) -> PolicySpec | str:
        import ray

        reference = self.handle.ready.remote()
        begun = noted = time.monotonic()
        while not ray.wait([reference], timeout=LOOK_SECONDS)[0]:
            check_alive()
            if (now := time.monotonic()) - noted > STILL_SECONDS:
                noted = now
                gpus = f", or waits for {self._ref.num_gpus:g} free GPU(s)" if self._ref.num_gpus else ""
                say(f"policy '{self._ref.name}' is still loading{gpus}, after {now - begun:.0f} s.")
        answer: PolicySpec | str = ray.get(reference)
        return answer

    def ensure(self) -> None:
        """Come back only when the policy answers."""
        import ray

        try:
            ray.get(self.handle.ready.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            check_alive(now=True)
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
    unanswered: float = 0.0  # seconds for which it has been
    silent: str = ""  # why it was killed, where it was for its silence


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
        """Results as they come. The caller puts episodes that must run again back on the schedule. Raises RayLost where
        Ray itself died."""
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
        except ray.exceptions.RayError as error:
            check_alive(now=True)
            result = Result(error=f"worker {slot.index} {slot.silent or _reason(error)}")
        if result.policy_lost:  # the worker and its environment are well
            if policy := self._policy(slot):
                policy.ensure()
        elif not result.error:
            slot.beats = max(slot.beats, (0, "env"))  # it has started, whether or not it was ever asked
        else:  # whatever the worker holds is not to be trusted any more
            ray.kill(slot.actor)
            slot.actor = self._actor.remote(self._settings)
            slot.beats, slot.asked, slot.silent = STARTING, None, ""
        return result

    def _watch(self) -> None:
        """Kill what has shown no sign of life for too long: the worker, or the policy that it waits for."""
        import ray

        check_alive()
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
            slot.unanswered += passed
            if slot.asked is None and slot.quiet > self._hang / 4:
                slot.asked = slot.actor.beat.options(concurrency_group="beat").remote()
                slot.unanswered = 0.0
            limit = max(self._hang, START_SECONDS) if slot.beats == STARTING else self._hang
            if slot.quiet > limit:
                slot.quiet = 0.0
                policy = self._policy(slot)
                waits = (
                    slot.beats[1] == "policy" and slot.unanswered < self._hang / 4
                )  # and answers meanwhile
                if (
                    waits and policy and policy.handle is slot.host
                ):  # not one that was started again meanwhile
                    policy.kill()
                else:
                    slot.silent = "showed no sign of life and was killed"
                    if slot.beats == STARTING:
                        slot.silent = f"did not start within {limit:.0f} s. Is a CPU free for it?"
                    ray.kill(slot.actor)


def _reason(error: Exception) -> str:
    """What an error of Ray means, as the end of a sentence: how a process died, or what was raised in it."""
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

    if isinstance(error, OutOfMemoryError) or "low on memory" in str(error):
        return "was killed because memory ran low (use fewer --workers)"
    if getattr(error, "actor_init_failed", False):  # a traceback, whose last line says what was raised
        return f"could not be made: {one_line(str(error).strip().splitlines()[-1], 500)}"
    if isinstance(error, RayActorError):
        return "died"
    cause = error.cause if isinstance(error, RayTaskError) else None
    return f"failed: {one_line(describe_error(cause or error), 500)}"
