"""A run: from a suite and a policy to a directory of episode records. The driver is the directory's only writer."""

from __future__ import annotations

import dataclasses
import errno
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from apt_bench.errors import UserError
from apt_bench.policies.base import PolicySpec
from apt_bench.policies.registry import PolicyRef, find_policy
from apt_bench.policies.simple import save_actions
from apt_bench.records import EpisodeRecord, RunStore, finished_keys, protocol_hash
from apt_bench.rollout import identity
from apt_bench.rollout.engine import PolicyActor, RayPool, Stream, auto_workers, ray_session, run_local
from apt_bench.rollout.episode import POLICY_FAULT, error_record
from apt_bench.rollout.progress import Progress
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.workers import Result, Settings, Video
from apt_bench.suites import EpisodeKey, EpisodeSpec, Suite, load_suite

ERRORS_IN_A_ROW = 5
"""So many episodes lost one after the other: something is broken for all of them, and the run stops."""


@dataclass(frozen=True)
class RunOptions:
    """What `apt-bench run` was asked for. None = the suite's or the policy's own choice."""

    suite: str
    policy: str
    policy_args: tuple[str, ...] = ()
    file: str | None = None
    cells: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    episodes: int | None = None
    seed: int | None = None
    limit: int | None = None
    instruction: str | None = None
    execute: int | None = None
    workers: str = "auto"
    video: str = "none"
    save_actions: bool = False
    out: Path | None = None
    ray_address: str | None = None
    attempts: int = 3
    hang_seconds: float = 180.0
    unpinned: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be run, known before anything runs."""

    suite: Suite
    specs: tuple[EpisodeSpec, ...]
    policy: PolicyRef
    policy_spec: PolicySpec
    execute: int
    protocol: dict[str, Any]
    out: Path
    finished: frozenset[EpisodeKey]

    @property
    def todo(self) -> list[EpisodeSpec]:
        """Episodes without a result."""
        return [s for s in self.specs if s.key not in self.finished]


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    out: Path
    records: tuple[EpisodeRecord, ...]  # of the episodes asked for, earlier commands' included
    missing: int
    stopped: Literal["", "interrupted", "disk", "errors"]
    message: str = ""

    @property
    def exit_code(self) -> int:
        """0 every episode has a result, 1 some are missing, 130 interrupted."""
        return 130 if self.stopped == "interrupted" else int(self.missing > 0)


def select(options: RunOptions) -> tuple[Suite, tuple[EpisodeSpec, ...]]:
    """The suite and the episodes asked for."""
    suite = load_suite(options.suite)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit must be at least 1, not {options.limit}.")
    installed = identity.versions(suite.simulator)
    for package, wanted in suite.simulator.items():
        if installed[package] != wanted and not options.unpinned:
            raise UserError(
                f"Suite '{suite.name}' is defined on {package} {wanted}; here is {installed[package]}, and scores "
                f"depend on it. Install {package}=={wanted}, or run another protocol on purpose with --unpinned."
            )
    specs = suite.select(
        options.cells or None,
        options.tasks or None,
        options.episodes,
        options.seed,
        options.instruction,
        options.limit,
    )
    if not specs:
        raise UserError("None of these tasks is available. `apt-bench ls tasks` says why.")
    return suite, tuple(specs)


def plan(
    options: RunOptions,
    suite: Suite,
    specs: tuple[EpisodeSpec, ...],
    ref: PolicyRef,
    policy_spec: PolicySpec,
) -> Plan:
    """Fix the protocol and the run directory, and look up what is finished there."""
    execute = min(policy_spec.execute, policy_spec.horizon) if options.execute is None else options.execute
    if not 1 <= execute <= policy_spec.horizon:
        raise UserError(
            f"--execute-horizon must lie between 1 and the policy's chunk of {policy_spec.horizon}, not {execute}."
        )
    protocol = identity.protocol(suite, policy_spec, execute, options.seed, options.instruction)
    default = f"{suite.name}-{ref.label(policy_spec)}-{protocol_hash(protocol)}"
    out = options.out or Path("results/runs") / default
    finished = finished_keys(RunStore(out).episodes()) if out.is_dir() else set()
    return Plan(suite, specs, ref, policy_spec, execute, protocol, out, frozenset(finished))


def count_workers(options: RunOptions, todo: int) -> int:
    """`--workers`: a number, or `auto`; never more than there are episodes."""
    if options.workers != "auto":
        if not options.workers.isdigit():
            raise UserError(f"--workers is auto or a number from 0, not '{options.workers}'.")
        return min(int(options.workers), todo)
    if options.ray_address:
        import ray

        here = ray.cluster_resources()
        return min(auto_workers(here.get("CPU", 1), here.get("memory", 0) / 2**30), todo)
    return min(auto_workers(identity.cores(), identity.free_memory_gb()), todo)


def run(options: RunOptions, console: Console) -> RunResult:
    """Run what is missing and record it. Raises UserError for bad input and for a policy that never answered well."""
    video = Video.parse(options.video)
    suite, specs = select(options)
    ref = find_policy(options.policy, options.policy_args, options.file)
    with ExitStack() as stack:
        local = options.workers == "0"
        actor = None
        if local or ref.placement == "worker":
            policy = ref.load()
            todo_plan = plan(options, suite, specs, ref, policy.spec)
            store = _store(todo_plan, options)
            workers = _start_ray(stack, options, todo_plan) if todo_plan.todo and not local else 0
        else:
            workers = _start_ray(stack, options, None, len(specs))
            actor = PolicyActor(ref, workers, str(Path.cwd()))
            todo_plan = plan(options, suite, specs, ref, actor.spec)
            store = _store(todo_plan, options)
        settings = Settings(
            policy=ref,
            policy_spec=todo_plan.policy_spec,
            execute=todo_plan.execute,
            video=video,
            save_actions=options.save_actions,
            control_hz=suite.control_hz,
            path=str(Path.cwd()),
        )
        schedule = Schedule(todo_plan.todo, options.attempts)
        stopped = stack.enter_context(stop_on_signals())
        stream: Stream
        if local or not todo_plan.todo:
            stream = run_local(schedule, settings, stopped)
        else:
            pool = RayPool(workers, settings, [actor] if actor else [], options.hang_seconds)
            stream = pool.stream(schedule, stopped)
        return _collect(store, todo_plan, schedule, stream, stopped, console)
