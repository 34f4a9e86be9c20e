"""Runs episodes in this process or in Ray actors. Both yield the same stream of (job, result)."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apt_bench.core.errors import RayLost, UserError, describe_error
from apt_bench.core.text import one_line, say
from apt_bench.policies.base import Policy, PolicySpec
from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout.cluster import CHECK_SECONDS, START_SECONDS, check_alive
from apt_bench.rollout.schedule import Job, Schedule
from apt_bench.rollout.workers import (
    Interrupted,
    PolicyHost,
    Result,
    RolloutActor,
    RolloutWorker,
    Settings,
    require_same_policy,
)

Stream = Generator[tuple[Job, Result]]

TICK = 0.25
"""Seconds between two checks for an interruption or a hang, at most."""


def run_local(
    schedule: Schedule,
    runs: Sequence[Settings],
    stopped: Callable[[], bool],
    policies: Mapping[int, Policy] = {},
) -> Stream:
    """Run episodes with one worker in this process: for debugging, and where Ray cannot run. Detects no hang."""
    worker = RolloutWorker(runs, policies, stopped)
    try:
        while not stopped() and (job := schedule.next(0)):
            yield job, worker.run(*job)
    except Interrupted:
        return
    finally:
        worker.close()


LOADS = 3
"""The run stops after a policy's process has died this often while it loaded."""

NOTE_SECONDS = 60.0
"""Interval of the message that a policy is still loading: large weights take minutes."""


class PolicyActor:
    """A policy's process, which is started again whenever it is lost. `share`: number of policies that share the
    cluster's GPUs."""

    def __init__(self, ref: PolicyRef, clients: int, path: str, code: Any = None, share: int = 1) -> None:
        self._ref, self._clients, self._path, self._code, self._share = ref, clients, path, code, share
        self._required: PolicySpec | None = None
        self._start()

    def require(self, spec: PolicySpec) -> None:
        """Wait until the policy is loaded. Raises UserError now and later where its server has another policy."""
        self._required = spec
        require_same_policy(self.spec(), spec)

    def spec(self) -> PolicySpec:
        """Wait until the policy is loaded.

        Raises:
            UserError: It cannot be loaded.
            RayLost: Its process died `LOADS` times meanwhile, or Ray died.
        """
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
                        "Does the machine have enough memory for its weights? --workers 0 loads it in this process "
                        "and shows what it prints."
                    ) from None
                self._start()
        if isinstance(answer, str):
            raise UserError(answer)
        return answer

    def _ready(self) -> PolicySpec | str:
        import ray

        reference = self.handle.ready.remote()
        begun = noted = time.monotonic()
        while not ray.wait([reference], timeout=CHECK_SECONDS)[0]:
            check_alive()
            if (now := time.monotonic()) - noted > NOTE_SECONDS:
                noted = now
                gpus = f", or waits for {self._ref.num_gpus:g} free GPU(s)" if self._ref.num_gpus else ""
                say(f"policy '{self._ref.name}' is still loading{gpus}, after {now - begun:.0f} s.")
        answer: PolicySpec | str = ray.get(reference)
        return answer

    def ensure(self) -> None:
        """Wait until the policy answers; start its process again where needed."""
        import ray

        try:
            found = ray.get(self.handle.ready.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            check_alive(now=True)
            self.kill()
            self._start()
            try:
                found = self.spec()
            except UserError as error:
                if not self._required:
                    raise
                found = str(error)
        # A text says why the server has not returned. Until it has, the policy answers ServerLost.
        if self._required and not isinstance(found, str):
            require_same_policy(found, self._required)

    @property
    def places(self) -> int:
        """How many actors of this policy the cluster holds now; 0 = any number."""
        return gpu_places(self._ref) // self._share if self._ref.num_gpus else 0

    def kill(self) -> None:
        """End the process and every call that waits for it."""
        import ray

        ray.kill(self.handle)

    def _start(self) -> None:
        import ray

        remote: Any = ray.remote  # typed for decorators only
        actor = remote(PolicyHost).options(
            num_cpus=0, num_gpus=self._ref.num_gpus, max_concurrency=self._clients + 2
        )
        self.handle: Any = actor.remote(self._ref, self._clients, self._path, self._code)


def policy_actors(
    ref: PolicyRef, workers: int, path: str, code: Any = None, share: int = 1
) -> list[PolicyActor]:
    """Start one actor, one for each server, or as many as the GPUs hold, which `share` policies share. They load in
    parallel. Raises UserError for too few GPUs."""
    import ray

    number = max(1, min(workers, len(ref.servers)))
    if ref.num_gpus:
        number = min(workers, gpu_places(ref) // share)
        if not number:
            there = ray.cluster_resources().get("GPU", 0)
            others = f" Give each of the {share} policies a command of its own." if share > 1 else ""
            raise UserError(
                f"Policy '{ref.name}' needs {ref.num_gpus:g} GPU(s) of one machine; Ray sees {there:g} in all.{others}"
            )
    return [PolicyActor(ref.for_worker(i), -(-workers // number), path, code, share) for i in range(number)]


def gpu_places(ref: PolicyRef) -> int:
    """How many actors of this policy the GPUs of the cluster hold. An actor uses the GPUs of one machine."""
    import ray

    there = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
    return sum(int(gpus / ref.num_gpus + 1e-6) for gpus in there)  # 1 // 0.1 is 9


STARTING = (-1, "start")


@dataclass
class _Slot:
    """A rollout worker, its present or last episode, and its heartbeats."""

    index: int
    actor: Any = None
    job: Job | None = None
    host: Any = None  # the policy actor that it calls
    silence: float = 0.0  # seconds since a new heartbeat was seen
    heartbeat: tuple[int, str] = STARTING
    request: Any = None  # a pending request for the heartbeat
    unanswered: float = 0.0  # seconds since that request
    killed: str = ""  # why it was killed


class RayPool:
    """Rollout workers in Ray actors. Each runs one episode at a time. A worker gets an episode once its process has
    started, so that no episode waits for a machine that has yet to join the cluster.

    Args:
        workers: Number of workers.
        runs: Settings of the runs that share them.
        policies: The policy actors of each run; none where the workers have the policy.
        hang_timeout: Seconds without a heartbeat after which a worker is killed.
    """

    def __init__(
        self,
        workers: int,
        runs: Sequence[Settings],
        policies: Sequence[Sequence[PolicyActor]],
        hang_timeout: float,
    ) -> None:
        import ray

        self._runs, self._policies, self._hang = runs, [list(p) for p in policies], hang_timeout
        remote: Any = ray.remote
        self._actor = remote(concurrency_groups={"heartbeat": 1})(RolloutActor).options(num_cpus=1)
        self._workers = workers
        self._starting: dict[Any, _Slot] = {}  # under the reply that shows that it has started
        self._idle: deque[_Slot] = deque()
        self._running: dict[Any, _Slot] = {}  # under the result of its episode
        for i in range(workers):
            self._start(_Slot(i))
        self._checked = time.monotonic()

    def stream(self, schedule: Schedule, stopped: Callable[[], bool]) -> Stream:
        """Yield results as they arrive. The caller queues the episodes that must run again.

        Raises:
            RayLost: Ray itself died.
        """
        import ray

        try:
            while not stopped():
                self._submit(schedule)
                if not self._running and not len(schedule):
                    return
                ended = self._ended()
                for reference in [r for r in ended if r in self._starting]:
                    slot = self._starting.pop(reference)
                    slot.heartbeat = (0, "env")
                    # Where the start failed, the first episode fails and names the reason.
                    self._idle.append(slot)
                results = [r for r in ended if r in self._running]
                for number, reference in enumerate(results, 1):
                    slot = self._running.pop(reference)
                    job = slot.job
                    assert job is not None
                    result = self._result(slot, reference)
                    yield job, dataclasses.replace(result, more=number < len(results))
                    if not stopped():
                        self._submit(schedule)
                self._kill_silent()
        finally:
            for slot in (*self._starting.values(), *self._idle, *self._running.values()):
                ray.kill(slot.actor)

    def _start(self, slot: _Slot) -> None:
        """Start the worker's process, or a new one."""
        slot.actor = self._actor.remote([settings.for_worker(slot.index) for settings in self._runs])
        slot.heartbeat, slot.silence, slot.request, slot.killed = STARTING, 0.0, None, ""
        self._starting[slot.actor.heartbeat.options(concurrency_group="heartbeat").remote()] = slot

    def _ended(self) -> Sequence[Any]:
        """Wait until a worker has started or ended its episode, for at most one tick. Returns all that have."""
        import ray

        pending = [*self._running, *self._starting]
        ready, _ = ray.wait(pending, timeout=TICK)
        if ready:
            ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        return ready

    def _policy(self, slot: _Slot) -> PolicyActor | None:
        """The policy actor that the slot's episode calls."""
        assert slot.job is not None
        actors = self._policies[slot.job.run]
        return actors[slot.index % len(actors)] if actors else None

    def _submit(self, schedule: Schedule) -> None:
        """Give each worker without an episode its next one."""
        while self._idle and len(schedule):
            slot = self._idle.popleft()
            slot.job = schedule.next(slot.index)
            assert slot.job is not None
            policy = self._policy(slot)
            slot.silence, slot.host = 0.0, policy and policy.handle
            self._running[slot.actor.run.remote(*slot.job, slot.host)] = slot

    def _result(self, slot: _Slot, reference: Any) -> Result:
        import ray

        try:
            result: Result = ray.get(reference)
        except ray.exceptions.RayError as error:
            check_alive(now=True)
            result = Result(error=f"worker {slot.index} {slot.killed or _reason(error)}")
        if result.error and not result.policy_lost:  # the worker may be in any state
            ray.kill(slot.actor)
            self._start(slot)
            return result
        self._idle.append(slot)
        if result.policy_lost and (policy := self._policy(slot)):  # the worker and its environment still work
            self._restore(policy)
        return result

    def _restore(self, policy: PolicyActor) -> None:
        """Wait until the policy answers. Where its machine left the cluster with its GPU, use the other policy actors
        instead."""
        actors = next(run for run in self._policies if policy in run)
        if 0 < policy.places < len(actors):
            policy.kill()
            actors.remove(policy)
        else:
            policy.ensure()

    def _kill_silent(self) -> None:
        """Kill whatever gave no heartbeat for too long: the worker, or the policy that it waits for."""
        import ray

        check_alive()
        now = time.monotonic()
        if now - self._checked < TICK:
            return
        # While this process was busy itself (starting a policy again) it received no heartbeat; do not count that.
        passed, self._checked = min(now - self._checked, 4 * TICK), now
        self._start_again(passed)
        for slot in self._running.values():
            if slot.request is not None and ray.wait([slot.request], timeout=0)[0]:
                try:
                    heartbeat = ray.get(slot.request)
                except ray.exceptions.RayError:
                    heartbeat = slot.heartbeat  # it died; the result of its episode reports that
                if heartbeat != slot.heartbeat:
                    slot.heartbeat, slot.silence = heartbeat, 0.0
                slot.request = None
            slot.silence += passed
            slot.unanswered += passed
            if slot.request is None and slot.silence > self._hang / 4:
                slot.request = slot.actor.heartbeat.options(concurrency_group="heartbeat").remote()
                slot.unanswered = 0.0
            if slot.silence > self._hang:
                slot.silence = 0.0
                policy = self._policy(slot)
                # A worker that answers while it waits for the policy is not the one that hangs. A policy that was
                # started again meanwhile is not the one that it waits for.
                waits = slot.heartbeat[1] == "policy" and slot.unanswered < self._hang / 4
                if waits and policy and policy.handle is slot.host:
                    policy.kill()
                else:
                    slot.killed = "gave no heartbeat and was killed"
                    ray.kill(slot.actor)

    def _start_again(self, passed: float) -> None:
        """Replace workers that do not start in time. Where none has started, that costs an episode and is reported."""
        import ray

        limit = max(self._hang, START_SECONDS)
        for reference, slot in list(self._starting.items()):
            slot.silence += passed
            if slot.silence > limit:
                slot.silence = 0.0
                ray.kill(slot.actor)
                if len(self._starting) < self._workers:
                    del self._starting[reference]
                    self._start(slot)
                else:
                    slot.killed = f"did not start within {limit:.0f} s. Is a CPU free for it?"


def _reason(error: Exception) -> str:
    """What an error of Ray means, as the end of a sentence: how a process died, or which exception it raised."""
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

    if isinstance(error, OutOfMemoryError) or "low on memory" in str(error):
        return "was killed because memory ran low (use fewer --workers)"
    if getattr(error, "actor_init_failed", False):  # a traceback; its last line names what was raised
        return f"could not be started: {one_line(str(error).strip().splitlines()[-1], 500)}"
    if isinstance(error, RayActorError):
        return "died"
    cause = error.cause if isinstance(error, RayTaskError) else None
    return f"failed: {one_line(describe_error(cause or error), 500)}"
