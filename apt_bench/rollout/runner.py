"""A run: from a suite and a policy to a directory of episode records. Only the driver writes to the directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from rich.console import Console

from apt_bench.core import provenance, temporary_folders
from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.core.files import exclusive
from apt_bench.core.signals import stop_on_signals
from apt_bench.core.status import status
from apt_bench.core.text import say
from apt_bench.core.tracking import tracking
from apt_bench.envs import rendering
from apt_bench.policies import canaries
from apt_bench.policies.guard import GuardedPolicy
from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout.cluster import ray_session
from apt_bench.rollout.engine import PolicyActor, RayPool, policy_actors, run_local
from apt_bench.rollout.options import RunOptions, number_of_workers
from apt_bench.rollout.plan import Plan, dry_plan, finished_plan, plan, policy_of, select
from apt_bench.rollout.progress import loading
from apt_bench.rollout.record_results import record_results
from apt_bench.rollout.result import RunResult, result_on_disk
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.user_code import collect_user_code
from apt_bench.rollout.video import Video
from apt_bench.rollout.workers import Settings
from apt_bench.rollout.writer import RunWriter
from apt_bench.runs.records import RunStore
from apt_bench.suites import EpisodeSpec

__all__ = ["Plan", "RunOptions", "RunResult", "dry_plan", "run", "select"]


def run(
    options: RunOptions,
    console: Console,
    prepare: Callable[[EpisodeSpec], EpisodeSpec] = lambda spec: spec,
    ref: PolicyRef | None = None,
) -> RunResult:
    """Run the missing episodes and record them. Starts neither Ray nor the policy where none is missing.

    Args:
        options: What to run, and how.
        console: Shows the progress.
        prepare: Changes how an episode is run, never which one (`apt-bench collect` wraps its environment).
        ref: The policy, where the options cannot name it.

    Raises:
        UserError: Bad input, or a policy whose first answer is unusable.
    """
    execution, output = options.execution, options.output
    video, number = Video.parse(output.video), number_of_workers(execution.workers)
    home = str(Path.cwd())
    with ExitStack() as stack:
        with status("Selecting episodes", console.print):
            suite, specs = select(options)
            specs = tuple(map(prepare, specs))
            ref = ref or policy_of(execution)
            if over := finished_plan(options, suite, specs, ref):
                return ended(over, output.selection_rule)
            actors: list[PolicyActor] = []
            workers, code = 0, None
            answers: dict[str, Any] | None = None
            if ref.placement == "worker" or number == 0 or ref.servers:
                with status(loading(ref)):
                    policy = ref.load()
                todo = plan(options, suite, specs, ref, policy.spec)
                if ref.servers and not ref.llm and not todo.over:
                    answers = check_server(policy, (*todo.todo, *specs)[0])
                if number != 0 or ref.llm:  # each worker makes its own
                    policy.close()
            else:  # load its weights only in the process where it runs
                policy = None
                workers = stack.enter_context(ray_session(execution.ray_address, number, len(specs)))
                code = sent_code(execution.ray_address, ref, suite.env, home)
                with status(loading(ref)):
                    actors = policy_actors(ref, workers, home, code)
                    todo = plan(options, suite, specs, ref, actors[0].spec())
            stack.enter_context(exclusive(todo.out, "apt-bench run"))
            # Another command may have written until the lock was taken.
            todo = plan(options, suite, specs, ref, todo.policy_spec)
            if todo.over:
                return ended(todo, output.selection_rule)
            # The policy's modules may have changed sys.path.
            provenance.require(suite.name, suite.simulator, execution.unpinned)
            RunStore(todo.out).sweep()
            temporary_folders.sweep()
            renders = bool(suite.simulator) and (todo.policy_spec.cameras or video.which != "none")
            with status("Testing the renderer"):
                renderer = dataclasses.asdict(rendering.describe()) if renders else None
            writer = RunWriter(todo, renderer, answers, output.selection_rule)
            if not actors and number != 0:
                workers = stack.enter_context(
                    ray_session(execution.ray_address, number, max(1, len(todo.todo)))
                )
                code = sent_code(execution.ray_address, ref, suite.env, home)
                if ref.placement == "actor":
                    with status(loading(ref)):
                        actors = policy_actors(ref, workers, home, code)
                        for actor in actors:
                            actor.require(todo.policy_spec)
            settings = Settings(
                env=suite.env,
                policy=ref.for_run(todo.out),
                policy_spec=todo.policy_spec,
                execute=todo.execute,
                video=video,
                save_actions=output.save_actions,
                control_hz=suite.control_hz,
                path=home,
                code=code,
                simulator=provenance.simulator(suite.simulator),
            )
            schedule = Schedule([] if todo.rule else todo.todo, execution.attempts)
            stopped = stack.enter_context(stop_on_signals())
            if workers:
                pool = RayPool(workers, settings, actors, execution.hang_timeout)
                stream = pool.stream(schedule, stopped)
            else:
                stream = run_local(schedule, settings, stopped, None if ref.llm else policy)
            tracker = stack.enter_context(tracking(output.track, todo.out, writer.card()))
        with closing(stream):
            return record_results(todo, writer, schedule, stream, stopped, console, workers, tracker)


def ended(plan: Plan, selection_rule: str | None) -> RunResult:
    """The result of a run that has no episode left. A new --selection-rule is recorded."""
    store, name = RunStore(plan.out), "selection_rule"
    if selection_rule is not None and (recorded := store.run()).get(name) != selection_rule:
        store.update_run({**recorded, name: selection_rule})
    return result_on_disk(plan)


def sent_code(address: str | None, ref: PolicyRef, env: str, home: str) -> Any:
    """Ray's reference to the user's own modules; None where Ray runs on this machine only."""
    import ray

    return ray.put(collect_user_code(ref, env, home)) if address else None


def check_server(policy: GuardedPolicy, spec: EpisodeSpec) -> dict[str, Any]:
    """Check the answers of a served policy, see `canaries.check_answers`. Print the warnings.

    Raises:
        UserError: The server does not answer, or its answers are no action chunks.
    """
    try:
        found = canaries.check_answers(policy, spec, canaries.stored_observation(spec))
    except PolicyFault as fault:
        raise UserError(f"Policy '{policy.spec.name}' {fault}.") from fault
    except ServerLost as lost:
        raise UserError(f"The server of policy '{policy.spec.name}' does not answer: {lost}.") from lost
    for warning in found["warnings"]:
        say(f"warning: {warning}")
    return found
