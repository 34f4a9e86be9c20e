"""What runs inside the Ray actors: a worker that owns environments, and a host that owns a policy.

Plain classes: `--workers 0` uses the same `RolloutWorker` in the calling process.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apt_bench.core.config import as_program, load_object
from apt_bench.core.errors import ServerLost, UserError, describe_error
from apt_bench.core.module_search_path import RAY_PYTHONPATH, installed_first
from apt_bench.core.provenance import Package, same
from apt_bench.core.temporary_folders import temporary_folder
from apt_bench.core.text import one_line
from apt_bench.envs.base import Env, Observation
from apt_bench.policies.base import Policy, PolicySpec
from apt_bench.policies.guard import let_signals_pass
from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout.batching import Batcher
from apt_bench.rollout.cluster import ONE_THREAD
from apt_bench.rollout.episode import LocalClient, PolicyClient, run_episode
from apt_bench.runs.records import EpisodeRecord
from apt_bench.suites import EpisodeSpec

CLOSE_SECONDS = 10.0
"""What an environment may take to close after an error."""

VIDEO_EVERY = 2
"""Control steps per frame: 10 frames per second at 20 Hz."""


@dataclass(frozen=True)
class Video:
    """Which episodes to film: `none`, `failures` (timeouts too), `all`, or the `first` so many initial states of each
    task."""

    which: str = "none"
    first: int = 0

    @staticmethod
    def parse(text: str) -> Video:
        """From the command line's `none|failures|first:K|all`."""
        which, _, number = text.partition(":")
        if which in ("none", "failures", "all") and not number:
            return Video(which)
        if which == "first" and re.fullmatch(r"[1-9][0-9]{0,8}", number):
            return Video(which, int(number))
        raise UserError(f"--video is none, failures, first:K (K at least 1) or all, not '{text}'.")

    def wants(self, record: EpisodeRecord) -> bool:
        """Whether this episode is filmed."""
        if self.which == "failures":
            return record.outcome in ("failure", "timeout")
        return self.which == "all" or (self.which == "first" and record.key.init < self.first)


@dataclass(frozen=True)
class Settings:
    """What every worker of a run shares."""

    policy: PolicyRef
    policy_spec: PolicySpec
    execute: int
    video: Video = Video()
    save_actions: bool = False
    control_hz: int = 20
    env: str = ""  # imported while the worker starts
    path: str = "."  # folder from which a user's own modules are imported
    simulator: tuple[Package, ...] = ()  # as the driver found it


@dataclass(frozen=True)
class Result:
    """What comes back for one episode: a record, or why there is none."""

    record: EpisodeRecord | None = None
    error: str | None = None  # worker, GL, simulator, policy server: to be tried again
    fatal: str | None = None  # bad input: the run cannot go on
    policy_lost: bool = False  # the error lies with the policy's actor, not with this worker
    actions: np.ndarray | None = None
    video: bytes | None = None


class Interrupted(BaseException):
    """Raised through the episode loop when the run is to stop."""


class RolloutWorker:
    """Owns an environment, and the policy where that lives in the worker."""

    def __init__(
        self, settings: Settings, policy: Policy | None = None, interrupt: Callable[[], bool] = lambda: False
    ) -> None:
        importable(settings.path)
        self._settings = settings
        self._interrupt = interrupt
        self._env: Env | None = None
        self._policy = policy
        self._beats, self._phase = 0, "env"

    def run(self, spec: EpisodeSpec, attempt: int = 1, host: Any = None) -> Result:
        """Run one episode; `host` is the policy's actor. Never raises, except Interrupted and what a signal raised:
        whatever else an environment raises, `SystemExit` included, is the error of this episode."""
        settings = self._settings
        try:
            client = RemoteClient(host) if host is not None else self._local_client()
            if self._env is None:
                make = load_object(spec.env)
                with as_program(spec.env.partition(":")[0]):
                    env = make()
                same(settings.simulator)
                self._env = env
            env = self._env
            rollout = run_episode(
                env, client, spec, settings.policy_spec, settings.execute, attempt, self._beat
            )
            record, video = rollout.record, None
            if settings.video.wants(record):
                record, video = film(env, spec, record, rollout.actions, settings.control_hz, self._beat)
            return Result(record, actions=rollout.actions if settings.save_actions else None, video=video)
        except UserError as error:
            return Result(fatal=str(error))
        except PolicyLost as error:
            return Result(error=str(error), policy_lost=True)
        except ServerLost as error:
            self._policy = None  # the next episode makes it anew, with a new connection
            return Result(error=f"the policy's server is gone: {error}", policy_lost=True)
        except Interrupted:
            raise
        except BaseException as error:
            let_signals_pass(error)
            self.close()  # its state is unknown now
            return Result(error=describe(error))

    def _local_client(self) -> PolicyClient:
        if self._policy is None:
            try:
                self._policy = self._settings.policy.load()
            except UserError as error:
                if isinstance(error.__cause__, ServerLost):
                    raise error.__cause__ from None
                raise
        return LocalClient(self._policy)

    def beat(self) -> tuple[int, str]:
        """Signs of life so far and the phase that the worker is in: `env` or `policy`."""
        return self._beats, self._phase

    def close(self) -> None:
        """Free the simulator, as far as it lets itself be freed: what it raises does not matter, and one that hangs is
        left behind."""
        env, self._env = self._env, None
        if env is None:
            return

        def close() -> None:
            with suppress(BaseException):
                env.close()

        thread = threading.Thread(target=close, name="close", daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)

    def _beat(self, phase: str) -> None:
        if self._interrupt():
            raise Interrupted
        self._beats, self._phase = self._beats + 1, phase


class RolloutActor(RolloutWorker):
    """The same with a process to itself, hence with one thread. (Ray's runtime environments would do it too, but make
    every start slow.)"""

    def __init__(self, settings: Settings) -> None:
        for name, value in ONE_THREAD.items():
            os.environ.setdefault(name, value)
        move_in(settings.path)
        super().__init__(settings)
        with suppress(UserError):  # imports belong to the start; what is wrong with them, `run` says
            load_object(settings.env)
            load_object(settings.policy.policy)


class PolicyHost:
    """A policy in its own process, asked by the workers directly. Its methods run in many threads at once."""

    def __init__(self, ref: PolicyRef, clients: int, path: str) -> None:
        move_in(path)
        self._spec: PolicySpec | None = None
        self._fatal: str | None = None
        try:
            policy = ref.load()
            self._spec = policy.spec
            self._batcher = Batcher(policy, clients)
        except UserError as error:
            self._fatal = str(error)

    def ready(self) -> PolicySpec | str:
        """The policy's declaration, or why it cannot be loaded. Raises ServerLost where it must be made anew: only a
        new connection can bring its server back."""
        if self._spec is None:
            return str(self._fatal)
        if self._batcher.gone:
            raise ServerLost("the policy's server is gone")
        return self._spec

    def reset(self, episode: str) -> Any:
        """See Batcher.reset."""
        return self._batcher.reset(episode)

    def act(self, observation: Observation) -> Any:
        """See Batcher.act."""
        return self._batcher.act(observation)


class PolicyLost(Exception):
    """The policy's actor died or its server is gone."""


@dataclass(frozen=True)
class RemoteClient:
    """A policy behind a Ray actor of PolicyHost."""

    host: Any

    def reset(self, episode: str) -> None:
        """This episode begins."""
        self._get(self.host.reset.remote(episode))

    def act(self, observation: Observation) -> tuple[Any, float]:
        """One chunk; the actor may batch it with other workers' observations."""
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


def film(
    env: Env,
    spec: EpisodeSpec,
    record: EpisodeRecord,
    actions: np.ndarray,
    control_hz: int,
    beat: Callable[[str], None],
) -> tuple[EpisodeRecord, bytes | None]:
    """Replay the episode's actions with the camera on, and give an mp4. The simulator is deterministic: a replay that
    ends in another state is a defect, noted in the record instead of a video."""

    def frames() -> Iterator[np.ndarray]:
        env.reset(spec)
        yield env.frame()
        for start in range(0, len(actions), VIDEO_EVERY):
            beat("env")
            env.step_chunk(actions[start : start + VIDEO_EVERY], render=False)
            yield env.frame()

    video = encode(frames(), control_hz / VIDEO_EVERY)
    if (end := env.outcome().end_hash) != record.end_hash:
        note = f"video: the replay ended in another state ({end}) than the episode ({record.end_hash})"
        return dataclasses.replace(record, error="; ".join(filter(None, (record.error, note)))), None
    return record, video


def encode(frames: Iterator[np.ndarray], fps: float) -> bytes:
    """H.264 in mp4. Frames: uint8 RGB, (H, W, 3), all of one size, H and W even."""
    import imageio.v2 as imageio

    with temporary_folder("film") as folder:
        path = folder / "video.mp4"
        writer: Any
        with imageio.get_writer(path, fps=fps, macro_block_size=2, ffmpeg_params=["-threads", "1"]) as writer:
            for frame in frames:
                writer.append_data(frame)
        return path.read_bytes()


def importable(path: str) -> None:
    """Let modules of this folder be imported, unless an installed one has the name."""
    if path not in sys.path:
        sys.path.append(path)


def move_in(path: str) -> None:
    """Make a process that Ray started look like the driver: its folder, if that is to be seen from here, its
    PYTHONPATH, and where modules are looked for."""
    with suppress(OSError):
        os.chdir(path)
    if mine := os.environ.pop(RAY_PYTHONPATH, None):
        os.environ["PYTHONPATH"] = mine
    sys.path[:] = [p for p in sys.path if p not in ("", "/")]  # "/": see `ray_session`
    installed_first(path)


def describe(error: BaseException) -> str:
    """One line: what was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return one_line(describe_error(error)) + place
