"""A run: from a suite and a policy to a directory of episode records. The driver is the directory's only writer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from rich.console import Console

from apt_bench.core import provenance, scratch
from apt_bench.core.files import exclusive
from apt_bench.core.signals import stop_on_signals
from apt_bench.core.tracking import tracking
from apt_bench.envs import rendering
from apt_bench.policies.registry import PolicyRef, find_policy
from apt_bench.rollout.book import Book, RunResult, nothing_left
from apt_bench.rollout.cluster import ray_session
from apt_bench.rollout.engine import PolicyActor, RayPool, policy_actors, run_local
from apt_bench.rollout.options import RunOptions, asked_workers, select
from apt_bench.rollout.plan import Plan, dry_plan, finished_plan, plan
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.workers import Settings, Video
from apt_bench.runs.records import RunStore
from apt_bench.suites import EpisodeSpec

__all__ = ["Plan", "RunOptions", "RunResult", "dry_plan", "run", "select"]

WHO = "apt-bench run"


def run(
    options: RunOptions,
    console: Console,
    prepare: Callable[[EpisodeSpec], EpisodeSpec] = lambda spec: spec,
    ref: PolicyRef | None = None,
) -> RunResult:
    """Run what is missing and record it. Where nothing is, neither Ray nor the policy is started. Raises UserError for
    bad input and for a policy that never answered well.

    prepare: the last word on how an episode is run, not on which (`apt-bench collect` wraps its environment).
    ref: the policy, where it is more than what the options say."""
    video, asked = Video.parse(options.video), asked_workers(options.workers)
    suite, specs = select(options)
    specs = tuple(map(prepare, specs))
    ref = ref or find_policy(options.policy, options.policy_args, options.file)
    if over := finished_plan(options, suite, specs, ref):
        return nothing_left(over)
    home = str(Path.cwd())
    with ExitStack() as stack:
        actors: list[PolicyActor] = []
        workers = 0
        if ref.placement == "worker" or asked == 0:
            policy = ref.load()
            todo = plan(options, suite, specs, ref, policy.spec)
        else:  # its weights are loaded once, where it will run
            policy = None
            workers = stack.enter_context(ray_session(options.ray_address, asked, len(specs)))
            actors = policy_actors(ref, workers, home)
            todo = plan(options, suite, specs, ref, actors[0].spec())
        stack.enter_context(exclusive(todo.out, WHO))
        # Another command may have written until now.
        todo = plan(options, suite, specs, ref, todo.policy_spec)
        if todo.over:
            return nothing_left(todo)
        # The policy's modules may have changed where modules are looked for.
        provenance.require(suite.name, suite.simulator, options.unpinned)
        RunStore(todo.out).sweep()
        scratch.sweep()
        renders = bool(suite.simulator) and (todo.policy_spec.cameras or video.which != "none")
        book = Book(todo, dataclasses.asdict(rendering.describe()) if renders else None)
        if not actors and asked != 0:
            workers = stack.enter_context(ray_session(options.ray_address, asked, max(1, len(todo.todo))))
        settings = Settings(
            env=suite.env,
            policy=ref,
            policy_spec=todo.policy_spec,
            execute=todo.execute,
            video=video,
            save_actions=options.save_actions,
            control_hz=suite.control_hz,
            path=home,
            simulator=provenance.simulator(suite.simulator),
        )
        schedule = Schedule([] if todo.rule else todo.todo, options.attempts)
        stopped = stack.enter_context(stop_on_signals())
        if workers:
            pool = RayPool(workers, settings, actors, options.hang_seconds)
            stream = pool.stream(schedule, stopped)
        else:
            stream = run_local(schedule, settings, stopped, policy)
        tracker = stack.enter_context(tracking(options.track, todo.out, book.card()))
        with closing(stream):
            return book.fill(schedule, stream, stopped, console, workers, tracker)
