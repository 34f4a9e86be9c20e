"""`evaluate`: run a policy on a suite and record it."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from apt_bench.api._values import path_of, several, suite_name
from apt_bench.api.runs import Run, load_run
from apt_bench.core.config import load_object
from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.text import plain_console
from apt_bench.policies.base import Policy, PolicySpec
from apt_bench.policies.guard import GuardedPolicy
from apt_bench.policies.registry import PolicyRef, find_policy
from apt_bench.rollout import runner
from apt_bench.rollout.options import OPTIONS, RunOptions
from apt_bench.rollout.plan import RUNS, policy_of
from apt_bench.suites import Suite, load_suite

AnyPolicy = str | type | Policy
"""A policy's name, "module:Class", a class, or an instance."""


def evaluate(
    policy: AnyPolicy,
    suite: str | os.PathLike[str] | Suite = "libero_pro",
    cells: str | Sequence[str] = (),
    *,
    tasks: str | int | Sequence[str | int] = (),
    episodes: int | None = None,
    seed: int | None = None,
    execute: int | None = None,
    probes: str | Sequence[str] = (),
    policy_args: Mapping[str, Any] | None = None,
    workers: int | str = "auto",
    out: str | os.PathLike[str] | None = None,
    unpinned: bool = False,
    progress: bool = True,
    **more: Any,
) -> Run:
    """Run a policy on a suite and record it, as `apt-bench run` does. The same call resumes what was interrupted.

    Args:
        policy: A name (`apt-bench ls policies`), "module:Class", a class, or an instance. An instance, and a class that
            other processes cannot import (for example of a notebook), runs in this process with `workers=0`.
        suite: A suite's name, the path of its YAML file, or a Suite, which is then registered (`register_suite`).
        cells: Cells of the suite; () = its headline cells.
        tasks: Names of tasks, parts of names, or indices in the cell; () = all.
        episodes: Number of initial states per task; None = the suite's.
        seed: Seed of the scenes; None = the suite's.
        execute: Execute horizon: actions executed of each chunk; None = the policy's.
        probes: Language probes, in addition to the cells' own prompts.
        policy_args: Arguments of the policy's class.
        workers: Rollout processes, "auto" or a number; 0 = everything in this process.
        out: Run directory; None = a folder in results/runs, named after suite, policy and protocol. An instance without
            `out` gets a new directory in each call, because its arguments are not known.
        unpinned: Allow another simulator than the suite's; scores then are not comparable.
        progress: Print the progress.
        **more: Other fields of `rollout.options.RunOptions`: file, limit, instruction_source, video, save_actions,
            ray_address, attempts, hang_timeout, checkpoint, servers, llm_model, max_cost, cassette (two words),
            against, margin (a fraction), track.

    Returns:
        The run, read from its directory. Missing episodes give a RuntimeWarning.

    Raises:
        UserError: Bad input, a policy that cannot be used, or a run that had to stop (a full disk, several lost
            episodes in a row). The recorded episodes are safe.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the finished episodes are recorded.
    """
    for name in more:
        if name not in OPTIONS or name in ("policy", "stop_when"):
            raise UserError(f"evaluate has no argument '{name}'. {did_you_mean(name, OPTIONS)}")
    if "against" in more:
        more["against"] = (
            more["against"].path if isinstance(more["against"], Run) else path_of(more["against"], "against")
        )
    elif "margin" in more:
        raise UserError("margin is only allowed with against=RUN.")
    if policy_args is not None and not isinstance(policy_args, Mapping):
        raise UserError("policy_args must be a mapping, such as {'seed': 1}.")
    options = RunOptions.of(
        suite=suite_name(suite),
        policy=policy if isinstance(policy, str) else _class_name(policy),
        cells=several(cells),
        tasks=several(tasks),
        episodes=episodes,
        seed=seed,
        execute_horizon=execute,
        probes=several(probes),
        workers=str(workers),
        out=None if out is None else path_of(out, "out"),
        unpinned=unpinned,
        stop_when="decided" if "against" in more else "complete",
        **more,
    )
    ref = _reference(policy, policy_args or {}, options)
    if isinstance(ref, HeldPolicy):
        options = _in_this_process(options, ref)
        ref = ref.of_directory(options.output.out)
    with open(os.devnull, "w") as nowhere:
        console = plain_console() if progress else Console(file=nowhere)
        result = runner.run(options, console, ref=ref)
    if result.stopped == "interrupted":
        raise KeyboardInterrupt(result.advice)
    if result.stopped:
        raise UserError(result.advice)
    if result.advice:
        warnings.warn(result.advice, RuntimeWarning, stacklevel=2)
    return load_run(result.out)


run = evaluate
"""The same function under the name of the command."""


# --- policies that other processes cannot import ----------------------------------------------------------------


@dataclass(frozen=True)
class HeldPolicy(PolicyRef):
    """A policy object of this process, which other processes cannot make."""

    made: GuardedPolicy | None = None

    def load(self) -> GuardedPolicy:
        """The policy object."""
        assert self.made is not None
        return self.made

    def declared(self) -> PolicySpec:
        """The specification that it declares."""
        return self.load().spec

    def digest(self) -> None:
        """None: its weights cannot be hashed."""

    def of_directory(self, out: Path | None) -> HeldPolicy:
        """The same policy with its run directory as an argument, so that two instances are never the same policy."""
        args = {**self.args, "instance": out.name if out else ""}
        return HeldPolicy(self.name, self.policy, args=args, placement="worker", made=self.made)


def _reference(policy: AnyPolicy, args: Mapping[str, Any], options: RunOptions) -> PolicyRef:
    """The reference from which the run makes its policy."""
    if isinstance(policy, str):
        return policy_of(options.execution, args)
    name = _class_name(policy)
    if options.execution.file is not None or options.execution.checkpoint is not None:
        raise UserError(
            "`file` and `checkpoint` are only allowed with the name of a policy that executes a file."
        )
    if isinstance(policy, type):
        if _importable(policy, name):
            return find_policy(name, args)
        made = PolicyRef(name, name, args=args).make(policy)
        return HeldPolicy(name, name, args=dict(args), made=made)
    if args:
        raise UserError("policy_args are only allowed with a policy's name or class, not with an instance.")
    return HeldPolicy(name, name, made=PolicyRef(name, name).checked(policy))


def _in_this_process(options: RunOptions, ref: HeldPolicy) -> RunOptions:
    """The options with `workers` 0, and a new run directory where none is given."""
    if options.execution.workers not in ("auto", "0"):
        raise UserError(
            f"{ref.name} runs in this process only. Leave `workers` out, or give the policy by its name or as "
            "'module:Class'."
        )
    out = options.output.out or _fresh(
        RUNS / f"{load_suite(options.selection.suite).name}-{ref.label(ref.declared())}"
    )
    return options.replace(workers="0", out=out)


def _fresh(stem: Path) -> Path:
    """The first of stem-instance1, stem-instance2, ... that does not exist."""
    return next(
        p for n in itertools.count(1) if not (p := stem.with_name(f"{stem.name}-instance{n}")).exists()
    )


def _importable(kind: type, name: str) -> bool:
    """Whether another process can import this class by its name."""
    if kind.__module__ == "__main__":
        return False
    try:
        return load_object(name) is kind
    except UserError:
        return False


def _class_name(policy: object) -> str:
    kind = policy if isinstance(policy, type) else type(policy)
    return f"{kind.__module__}:{kind.__qualname__}"
