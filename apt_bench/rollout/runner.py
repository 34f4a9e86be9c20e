"""Runs: from a suite and policies to directories of episode records. Only the driver writes to the directories."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
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
from apt_bench.rollout.record_results import Recorder, record_results
from apt_bench.rollout.result import RunResult, result_on_disk
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.user_code import collect_user_code
from apt_bench.rollout.video import Video
from apt_bench.rollout.workers import Settings
from apt_bench.rollout.writer import RunWriter
from apt_bench.runs.records import RunStore
from apt_bench.suites import EpisodeSpec

__all__ = ["Plan", "RunOptions", "RunResult", "dry_plan", "run", "run_several", "select"]


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
    return _run([_Run(options, ref or policy_of(options.execution))], console, prepare)[0]


def run_several(options: Sequence[RunOptions], console: Console) -> list[RunResult]:
    """Run several policies on the same episodes. They share the workers and their compiled scenes. Each has a run
    directory of its own.

    Args:
        options: Options that differ in the policy and the run directory only.
        console: Shows the progress of all.

    Raises:
        UserError: See `run`.
    """
    return _run([_Run(o, policy_of(o.execution)) for o in options], console)


@dataclass
class _Run:
    """One run on its way: what is known of it is filled in step by step."""

    options: RunOptions
    ref: PolicyRef
    policy: GuardedPolicy | None = None  # in this process
    actors: list[PolicyActor] = field(default_factory=list)
    made: Plan | None = None
    canaries: dict[str, Any] | None = None
    result: RunResult | None = None

    @property
    def plan(self) -> Plan:
        """The plan, once it is made."""
        assert self.made is not None
        return self.made


def _run(
    runs: Sequence[_Run], console: Console, prepare: Callable[[EpisodeSpec], EpisodeSpec] = lambda spec: spec
) -> list[RunResult]:
    """Run the missing episodes of runs with the same selection, execution and output settings."""
    options = runs[0].options
    execution, output = options.execution, options.output
    video, number = Video.parse(output.video), number_of_workers(execution.workers)
    home = str(Path.cwd())
    with ExitStack() as stack:
        with status("Selecting episodes", console.print):
            suite, specs = select(options)
            specs = tuple(map(prepare, specs))
            for run in runs:
                if over := finished_plan(run.options, suite, specs, run.ref):
                    run.result = ended(over, output.selection_rule)
            workers, share = 0, 1
            left = [run for run in runs if not run.result]
            # A policy with an actor loads its weights only in the process where it runs.
            here = [run for run in left if run.ref.placement == "worker" or number == 0 or run.ref.servers]
            for run in here:
                ref = run.ref
                with status(loading(ref)):
                    run.policy = ref.load()
                run.made = plan(run.options, suite, specs, ref, run.policy.spec)
                if ref.servers and not ref.llm and not run.plan.over:
                    run.canaries = check_server(run.policy, (*run.plan.todo, *specs)[0])
                if number != 0 or ref.llm:  # each worker makes its own
                    run.policy.close()
                    run.policy = None
            if there := [run for run in left if run not in here]:
                episodes = len(left) * len(specs)
                workers = stack.enter_context(ray_session(execution.ray_address, number, episodes))
                share = max(1, sum(run.ref.num_gpus > 0 for run in left))
            for run in there:
                code = sent_code(execution.ray_address, run.ref, suite.env, home)
                with status(loading(run.ref)):
                    run.actors = policy_actors(run.ref, workers, home, code, share)
                    run.made = plan(run.options, suite, specs, run.ref, run.actors[0].spec())
            if len({run.plan.out.resolve() for run in left}) < len(left):
                names = ", ".join(run.ref.name for run in left)
                raise UserError(
                    f"Two of {names} have the same run directory. Give each a command of its own."
                )
            for run in left:
                stack.enter_context(exclusive(run.plan.out, "apt-bench run"))
                # Another command may have written until the lock was taken.
                run.made = plan(run.options, suite, specs, run.ref, run.plan.policy_spec)
                if run.plan.over:
                    run.result = ended(run.plan, output.selection_rule)
            left = [run for run in left if not run.result]
            if not left:
                return [run.result for run in runs if run.result]
            # The policy's modules may have changed sys.path.
            provenance.require(suite.name, suite.simulator, execution.unpinned)
            for run in left:
                RunStore(run.plan.out).sweep()
            temporary_folders.sweep()
            films = video.which != "none"
            sighted = [
                bool(suite.simulator) and (films or bool(run.plan.policy_spec.cameras)) for run in left
            ]
            with status("Testing the renderer"):
                renderer = dataclasses.asdict(rendering.describe()) if any(sighted) else None
            writers = [
                RunWriter(run.plan, renderer if sees else None, run.canaries, output.selection_rule)
                for run, sees in zip(left, sighted, strict=True)
            ]
            if not workers and number != 0:
                episodes = sum(len(run.plan.todo) for run in left)
                workers = stack.enter_context(ray_session(execution.ray_address, number, max(1, episodes)))
            settings = []
            schedule = Schedule([], execution.attempts)
            for index, run in enumerate(left):
                code = sent_code(execution.ray_address, run.ref, suite.env, home) if workers else None
                if workers and run.ref.placement == "actor" and not run.actors:
                    with status(loading(run.ref)):
                        run.actors = policy_actors(run.ref, workers, home, code)
                        for actor in run.actors:
                            actor.require(run.plan.policy_spec)
                settings.append(
                    Settings(
                        env=suite.env,
                        policy=run.ref.for_run(run.plan.out),
                        policy_spec=run.plan.policy_spec,
                        execute=run.plan.execute,
                        video=video,
                        save_actions=output.save_actions,
                        control_hz=suite.control_hz,
                        path=home,
                        code=code,
                        simulator=provenance.simulator(suite.simulator),
                    )
                )
                schedule.add([] if run.plan.rule else run.plan.todo, index)
            stopped = stack.enter_context(stop_on_signals())
            if workers:
                pool = RayPool(workers, settings, [run.actors for run in left], execution.hang_timeout)
                stream = pool.stream(schedule, stopped)
            else:
                loaded = {index: run.policy for index, run in enumerate(left) if run.policy}
                stream = run_local(schedule, settings, stopped, loaded)
            recorders = [
                Recorder(
                    run.plan, writer, stack.enter_context(tracking(output.track, run.plan.out, writer.card()))
                )
                for run, writer in zip(left, writers, strict=True)
            ]
        with closing(stream):
            found = record_results(recorders, schedule, stream, stopped, console, workers)
    for run, result in zip(left, found, strict=True):
        run.result = result
    return [run.result for run in runs if run.result]


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
