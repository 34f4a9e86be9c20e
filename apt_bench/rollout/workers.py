"""What runs inside the Ray actors: a worker that owns an environment, and a host that owns a policy.

They are plain classes: `--workers 0` uses the same `RolloutWorker` in the calling process.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apt_bench.core.config import argv_of_module, load_object
from apt_bench.core.errors import ServerLost, UserError, describe_error
from apt_bench.core.jsonable import jsonable
from apt_bench.core.module_search_path import RAY_PYTHONPATH, installed_first
from apt_bench.core.provenance import Package, require_same
from apt_bench.core.text import one_line
from apt_bench.envs.base import Env, Observation, Outcome
from apt_bench.policies.base import Policy, PolicySpec
from apt_bench.policies.guard import let_signals_pass
from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout.batching import Batcher
from apt_bench.rollout.cluster import ONE_THREAD
from apt_bench.rollout.episode import LocalClient, PolicyClient, run_episode
from apt_bench.rollout.user_code import UserCode
from apt_bench.rollout.video import Video, film
from apt_bench.runs.records import EpisodeRecord
from apt_bench.suites import EpisodeSpec

CLOSE_SECONDS = 10.0
"""Time limit for closing an environment after an error."""


@dataclass(frozen=True)
class Settings:
    """What all workers of a run share. Runs that share workers differ in `policy`, `policy_spec`, `execute` and `code`
    only."""

    policy: PolicyRef
    policy_spec: PolicySpec
    execute: int
    video: Video = field(default_factory=Video)
    save_actions: bool = False
    control_hz: int = 20
    env: str = ""  # "module:Class", imported while the worker starts
    path: str = "."  # folder from which a user's own modules are imported
    code: Any = None  # on a cluster: Ray's reference to a UserCode
    simulator: tuple[Package, ...] = ()  # installed packages that the driver found

    def for_worker(self, number: int) -> Settings:
        """A copy for one worker. The next worker's copy begins with another of the policy's servers."""
        return dataclasses.replace(self, policy=self.policy.for_worker(number))


@dataclass(frozen=True)
class Result:
    """The result of one attempt at an episode: a record, or why there is none."""

    record: EpisodeRecord | None = None
    error: str | None = None  # of worker, GL, simulator or policy server: try again
    fatal: str | None = None  # bad input: the run must stop
    policy_lost: bool = False  # the policy's actor or server failed, the worker did not
    actions: np.ndarray | None = None
    video: bytes | None = None
    more: bool = False  # another result has arrived and follows at once


class Interrupted(BaseException):
    """Raised in the episode loop when the run was interrupted."""


class RolloutWorker:
    """Owns an environment, and the policies that run in the worker.

    Args:
        runs: Settings of the runs whose episodes it gets.
        policies: Policies that are loaded already, by the index of their run.
        interrupt: Whether the run was interrupted.
    """

    def __init__(
        self,
        runs: Sequence[Settings],
        policies: Mapping[int, Policy] = {},
        interrupt: Callable[[], bool] = lambda: False,
    ) -> None:
        importable(runs[0].path)
        self._runs = runs
        self._interrupt = interrupt
        self._env: Env | None = None
        self._policies = dict(policies)
        self._heartbeats, self._phase = 0, "env"
        self._codes: Sequence[UserCode | None] = [None] * len(runs)

    def run(self, spec: EpisodeSpec, attempt: int = 1, run: int = 0, host: Any = None) -> Result:
        """Run one episode.

        Args:
            spec: The episode.
            attempt: Number of the attempt, from 1.
            run: Index of the episode's run.
            host: The policy's actor; None = the policy runs in this worker.

        Raises:
            Interrupted: The run was interrupted. What a signal handler raised is raised, too; every other exception,
                `SystemExit` included, becomes the error of this episode.
        """
        settings = self._runs[run]
        try:
            client = RemoteClient(host) if host is not None else self._local_client(run)
            if self._env is None:
                make = load_object(spec.env)
                with argv_of_module(spec.env.partition(":")[0]):
                    env = make()
                require_same(settings.simulator)
                self._env = env
            env = self._env
            rollout = run_episode(
                env, client, spec, settings.policy_spec, settings.execute, attempt, self._record_heartbeat
            )
            record, video = rollout.record, None
            if settings.video.wants(record):
                record, video = film(
                    env, spec, record, rollout.actions, settings.control_hz, self._record_heartbeat
                )
            return Result(record, actions=rollout.actions if settings.save_actions else None, video=video)
        except UserError as error:
            code = self._codes[run]
            return Result(fatal=code.explain(str(error)) if code else str(error))
        except PolicyLost as error:
            return Result(error=str(error), policy_lost=True)
        except ServerLost as error:
            self._policies.pop(run, None)  # the next episode makes it again, with a new connection
            return Result(error=f"the policy's server is gone: {error}", policy_lost=True)
        except Interrupted:
            raise
        except BaseException as error:
            let_signals_pass(error)
            self.close()  # the state of the environment is unknown now
            return Result(error=describe(error))

    def _local_client(self, run: int) -> PolicyClient:
        settings = self._runs[run]
        if run not in self._policies:
            try:
                found = settings.policy.load()
            except UserError as error:
                if isinstance(error.__cause__, ServerLost):
                    raise error.__cause__ from None
                raise
            if settings.policy.servers:
                require_same_policy(found.spec, settings.policy_spec)
            self._policies[run] = found
        return LocalClient(self._policies[run])

    def heartbeat(self) -> tuple[int, str]:
        """The number of heartbeats so far and the worker's phase, `env` or `policy`."""
        return self._heartbeats, self._phase

    def close(self) -> None:
        """Free the simulator. What it raises is ignored, and one that hangs is abandoned after `CLOSE_SECONDS`."""
        env, self._env = self._env, None
        if env is None:
            return

        def close() -> None:
            with suppress(BaseException):
                env.close()

        thread = threading.Thread(target=close, name="close", daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)

    def _record_heartbeat(self, phase: str) -> None:
        if self._interrupt():
            raise Interrupted
        self._heartbeats, self._phase = self._heartbeats + 1, phase


def require_same_policy(found: PolicySpec, first: PolicySpec) -> None:
    """Raise UserError where a server does not serve the policy that the run began with."""
    if found != first:
        raise UserError(
            f"Policy '{found.name}' is not the one that the run began with: its spec has changed. Does its server now "
            "serve another checkpoint? Rerun with the first one, or with another --out."
        )


class RolloutActor(RolloutWorker):
    """A rollout worker in a process of its own, which uses one thread. (Ray's runtime environments could set that, but
    slow down every start.)"""

    def __init__(self, runs: Sequence[Settings]) -> None:
        for name, value in ONE_THREAD.items():
            os.environ.setdefault(name, value)
        codes = [match_driver(settings.path, settings.code) for settings in runs]
        super().__init__(runs)
        self._codes = codes
        for name in (runs[0].env, *(settings.policy.policy for settings in runs)):
            with suppress(UserError):  # import during the start; `run` reports an import that fails
                load_object(name)


class PolicyHost:
    """A policy in a process of its own, which the workers call directly. Its methods run in many threads at once."""

    def __init__(self, ref: PolicyRef, clients: int, path: str, code: Any = None) -> None:
        self._code = match_driver(path, code)
        self._ref, self._clients = ref, clients
        self._load()

    def _load(self) -> None:
        try:
            policy = self._ref.load()
            self._spec, self._fatal = policy.spec, ""
            self._batcher = Batcher(policy, self._clients)
        except UserError as error:
            self._fatal = self._code.explain(str(error)) if self._code else str(error)

    def ready(self) -> PolicySpec | str:
        """The policy's declaration, or why it cannot be loaded. A policy of `--server` that lost its server is loaded
        again first.

        Raises:
            ServerLost: The server is lost, and only a new policy can connect to it again.
        """
        if self._ref.servers and (self._fatal or self._batcher.server_lost):
            self._load()
        if self._fatal:
            return self._fatal
        if self._batcher.server_lost:
            raise ServerLost("the policy's server is gone")
        return self._spec

    def reset(self, episode: EpisodeSpec) -> Any:
        """See Batcher.reset."""
        return self._lost() or self._batcher.reset(episode)

    def finish(self, episode: EpisodeSpec, outcome: Outcome) -> Any:
        """See Batcher.finish."""
        return self._lost() or self._batcher.finish(episode, outcome)

    def act(self, observation: Observation) -> Any:
        """See Batcher.act."""
        return self._lost() or self._batcher.act(observation)

    def _lost(self) -> tuple[ServerLost, float] | None:
        """The answer while the policy cannot be loaded."""
        return (ServerLost(self._fatal), 0.0) if self._fatal else None


class PolicyLost(Exception):
    """The policy's actor died, or its server is lost."""


@dataclass(frozen=True)
class RemoteClient:
    """A policy in a Ray actor of PolicyHost."""

    host: Any

    def reset(self, episode: EpisodeSpec) -> None:
        """Announce that this episode begins."""
        self._get(self.host.reset.remote(episode))

    def finish(self, episode: EpisodeSpec, outcome: Outcome) -> dict[str, Any]:
        """Announce that this episode ended; the policy's notes for its record."""
        plain = dataclasses.replace(outcome, events=jsonable(dict(outcome.events), bounded=True))
        try:
            notes: dict[str, Any] = self._get(self.host.finish.remote(episode, plain))[0]
        except PolicyLost as error:  # the episode has its outcome; the next one finds the policy lost
            return {"error": str(error)}
        return notes

    def act(self, observation: Observation) -> tuple[Any, float]:
        """One action chunk; the actor may batch the observation with those of other workers."""
        return self._get(self.host.act.remote(observation))

    def _get(self, reference: Any) -> tuple[Any, float]:
        import ray

        try:
            answer, seconds = ray.get(reference)
        except ray.exceptions.RayError as error:
            raise PolicyLost(f"the policy's actor was lost: {type(error).__name__}") from error
        if isinstance(answer, ServerLost):
            raise PolicyLost(f"the policy's server is gone: {answer}")
        if isinstance(answer, BaseException):
            raise answer
        return answer, seconds


def importable(path: str) -> None:
    """Let modules of this folder be imported. An installed module of the same name takes precedence."""
    if path not in sys.path:
        sys.path.append(path)


def match_driver(path: str, code: Any = None) -> UserCode | None:
    """Give a process that Ray started the driver's working directory (where that exists here), PYTHONPATH and module
    search path. With a reference to the user's code, which is returned, install that, too."""
    import ray

    with suppress(OSError):
        os.chdir(path)
    if mine := os.environ.pop(RAY_PYTHONPATH, None):
        os.environ["PYTHONPATH"] = mine
    sys.path[:] = [p for p in sys.path if p not in ("", "/")]  # "/": see `ray_session`
    # Ray itself replaces a reference that is an argument of its own, not one inside `Settings`.
    found: UserCode | None = ray.get(code) if isinstance(code, ray.ObjectRef) else code
    if found:
        found.install()
    installed_first(path)
    return found


def describe(error: BaseException) -> str:
    """An exception and the place that raised it, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return one_line(describe_error(error)) + place
