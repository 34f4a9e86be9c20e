"""The public API: what `import apt_bench` gives. docs/api.md describes it.

Every function calls what the command line calls. Bad input is a UserError, never SystemExit.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

from apt_bench.core.config import load_object
from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.text import one_line, plain_console
from apt_bench.envs.base import AGENTVIEW, WRIST
from apt_bench.policies.base import Policy, PolicySpec
from apt_bench.policies.guard import GuardedPolicy
from apt_bench.policies.registry import PolicyRef, find_policy
from apt_bench.reporting import data
from apt_bench.rollout import runner
from apt_bench.rollout.options import RunOptions
from apt_bench.rollout.plan import RUNS
from apt_bench.suites import Suite, load_suite, register_suite

if TYPE_CHECKING:
    from apt_bench.envs.gym import SuiteEnv
    from apt_bench.regression import Comparison

AnyPolicy = str | type | Policy
"""A policy's name, "module:Class", a class, or an instance."""

COLUMNS = {
    "suite": "suite",
    "cell": "cell",
    "task": "task",
    "init": "init",
    "seed": "seed",
    "prompt": "prompt",
    "prompt_text": "instruction",
    "policy": "policy",
    "outcome": "outcome",
    "klass": "outcome_class",
    "success": "success",
    "done": "finished",
    "steps": "steps",
    "decisions": "decisions",
    "first": "first_contact",
    "told": "first_contact_correct",
    "grasped_told": "first_grasp_correct",
    "memorised": "original_task_done",
    "defects": "defects",
    "error": "error",
    "video": "video",
    "start_hash": "start_hash",
    "end_hash": "end_hash",
}
"""Columns of `reporting.frame.episode_frame` -> stable columns of `Run.episodes`, in order."""

FLAGS = ("first_contact_correct", "first_grasp_correct", "original_task_done")
"""Columns that are True, False, or <NA> where the record does not say."""


@dataclass(frozen=True)
class Run:
    """One run directory, read. `evaluate` and `load_run` make it."""

    data: data.Run  # what reports read

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.data.path

    @property
    def name(self) -> str:
        """The policy's name."""
        return self.data.label

    @property
    def protocol(self) -> dict[str, Any]:
        """`protocol.json`: everything that may change a score, and its hash."""
        return dict(self.data.protocol)

    @property
    def info(self) -> dict[str, Any]:
        """`run.json`: policy, versions, command, machine, times, and what was asked for."""
        return dict(self.data.info)

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """One row per episode, those under language probes included (`prompt` is then the probe's name).

        The columns have stable names; docs/api.md gives each one's meaning and unit. After the fixed columns come
        `seconds_*` (seconds that a part of the episode took) and `score_*` (scores of a composite task), one for each
        part that was recorded.
        """
        frame = pd.concat([self.data.frame, self.data.probed]).sort_index().reset_index(drop=True)
        found = frame[list(COLUMNS)].rename(columns=COLUMNS)
        for name in FLAGS:
            found[name] = found[name].astype("boolean")
        for name in frame.columns:
            if name.startswith("sec_"):
                found["seconds_" + name.removeprefix("sec_")] = frame[name]
            elif name.startswith("score_"):
                found[name] = frame[name]
        return found

    def summary(self) -> pd.DataFrame:
        """One row per cell, of episodes under the cells' own prompts.

        Columns: `suite`, `cell`; `successes`, `episodes` (finished ones); `rate` = successes / episodes with its Wilson
        95% interval `low`, `high`, all fractions (NaN, 0, 1 without a finished episode); `requested` (episodes that
        were asked for), `coverage` = episodes / requested, `errors` (recorded episodes without a result).
        """
        rows = []
        for cell in data.cell_summaries(self.data).values():
            rate = cell.rate
            rows.append(
                {
                    "suite": cell.suite,
                    "cell": cell.cell,
                    "successes": cell.successes,
                    "episodes": cell.done,
                    "rate": rate.value,
                    "low": rate.low,
                    "high": rate.high,
                    "requested": cell.asked,
                    "coverage": cell.done / cell.asked if cell.asked else 1.0,
                    "errors": cell.errors,
                }
            )
        return pd.DataFrame(rows, columns=SUMMARY)

    def __repr__(self) -> str:
        own = self.data.frame
        return f"Run({str(self.path)!r}: {self.name}, {int(own.success.sum())} of {int(own.done.sum())} episodes)"


SUMMARY = [
    "suite", "cell", "successes", "episodes", "rate", "low", "high", "requested", "coverage", "errors",
]  # fmt: skip
"""Columns of `Run.summary`."""


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run directory.

    Args:
        path: The directory that `evaluate` or `apt-bench run` wrote.

    Raises:
        UserError: There is no run, or a damaged one.
    """
    return Run(data.load_run(_path(path, "path")))


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
            other processes cannot import (one of a notebook), runs in this process with `workers=0`.
        suite: A name, the path of a YAML file, or a Suite, which is registered (`register_suite`).
        cells: Cells of the suite; () = its headline cells.
        tasks: Names of tasks, parts of names, or indices in the cell; () = all.
        episodes: Initial states per task; None = the suite's number.
        seed: Seed of the scenes; None = the suite's.
        execute: Actions executed of each chunk; None = the policy's number.
        probes: Language probes, in addition to the cells' own prompts.
        policy_args: Arguments of the policy's class.
        workers: Rollout processes, "auto" or a number; 0 = everything in this process.
        out: Run directory; None = a folder in results/runs, named after suite, policy and protocol. An instance without
            `out` gets a new directory in each call, because its arguments are not known.
        unpinned: Run with another simulator than the suite's; scores then mean something else.
        progress: Print progress.
        **more: Other fields of `rollout.options.RunOptions`: file, limit, instruction, video, save_actions,
            ray_address, attempts, hang_seconds, against, margin (a fraction), track.

    Returns:
        The run, read from its directory. A RuntimeWarning says where episodes are missing.

    Raises:
        UserError: Bad input, a policy that cannot be used, or a run that had to stop (a full disk, lost episodes in a
            row). What was recorded is safe.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the episodes so far are recorded.
    """
    known = {f.name for f in fields(RunOptions)}
    for name in more:
        if name not in known or name == "policy":
            raise UserError(f"evaluate has no argument '{name}'. {did_you_mean(name, known)}")
    if "against" in more:
        more["against"] = (
            more["against"].path if isinstance(more["against"], Run) else _path(more["against"], "against")
        )
    elif "margin" in more:
        raise UserError("margin goes with against=RUN.")
    if policy_args is not None and not isinstance(policy_args, Mapping):
        raise UserError("policy_args must be a mapping, such as {'seed': 1}.")
    options = RunOptions(
        _suite_name(suite),
        policy if isinstance(policy, str) else _class_name(policy),
        cells=_several(cells),
        tasks=_several(tasks),
        episodes=episodes,
        seed=seed,
        execute=execute,
        probes=_several(probes),
        workers=str(workers),
        out=None if out is None else _path(out, "out"),
        unpinned=unpinned,
        **more,
    )
    ref = _reference(policy, policy_args or {}, options)
    if isinstance(ref, HeldPolicy):
        options = _in_this_process(options, ref)
        ref = ref.of_directory(options.out)
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
"""`evaluate` under the name of the command."""


def compare(
    a: Run | str | os.PathLike[str], b: Run | str | os.PathLike[str], force: bool = False
) -> Comparison:
    """Compare two runs, matched episode by episode, as `apt-bench compare` does.

    Args:
        a: A run, or its directory.
        b: The other; differences are a - b.
        force: Compare although the protocols differ.

    Returns:
        The comparison: `overall`, `cells` and `tasks` hold `contrasts.Contrast` objects (rates, difference with its 95%
        interval, p, verdict), `cautions` what limits them.

    Raises:
        UserError: The runs share no cell, or their protocols differ and `force` is False.
    """
    from apt_bench.regression import compare as paired

    first, second = (one if isinstance(one, Run) else load_run(one) for one in (a, b))
    return paired(first.data, second.data, force)


def make_env(
    suite: str | os.PathLike[str] | Suite,
    cell: str,
    cameras: Sequence[str] = (AGENTVIEW, WRIST),
    render_mode: str | None = None,
    unpinned: bool = False,
) -> SuiteEnv:
    """One cell of a suite as a `gymnasium.Env`.

    Args:
        suite: A name, the path of a YAML file, or a Suite, which is registered (`register_suite`).
        cell: The cell's name.
        cameras: Cameras of the observation; () renders nothing and is fast.
        render_mode: "rgb_array", or None.
        unpinned: Use another simulator than the suite's.

    Returns:
        The environment; see `apt_bench.envs.gym.SuiteEnv` for its spaces and the options of `reset`.
    """
    from apt_bench.envs.gym import SuiteEnv

    return SuiteEnv(_suite_name(suite), cell, tuple([cameras] if isinstance(cameras, str) else cameras),
                    render_mode, unpinned)  # fmt: skip


# --- policies that no other process can import ----------------------------------------------------------------


@dataclass(frozen=True)
class HeldPolicy(PolicyRef):
    """A policy that was made in this process and stays there."""

    made: GuardedPolicy | None = None

    def load(self) -> GuardedPolicy:
        """The policy itself."""
        assert self.made is not None
        return self.made

    def declared(self) -> PolicySpec:
        """What it declares."""
        return self.load().spec

    def digest(self) -> None:
        """Its weights are not hashed."""

    def of_directory(self, out: Path | None) -> HeldPolicy:
        """The same, known by its run directory: two instances of a class are never taken for one policy."""
        args = {**self.args, "instance": out.name if out else ""}
        return HeldPolicy(self.name, self.policy, args=args, placement="worker", made=self.made)


def _reference(policy: AnyPolicy, args: Mapping[str, Any], options: RunOptions) -> PolicyRef:
    """How the run makes its policy."""
    if isinstance(policy, str):
        return find_policy(policy, args, options.file)
    name = _class_name(policy)
    if options.file is not None:
        raise UserError("`file` goes with the name of a policy that executes one.")
    if isinstance(policy, type):
        if _importable(policy, name):
            return find_policy(name, args)
        made = PolicyRef(name, name, args=args).make(policy)
        return HeldPolicy(name, name, args=dict(args), made=made)
    if args:
        raise UserError("policy_args go with a policy's name or class; an instance is made already.")
    return HeldPolicy(name, name, made=PolicyRef(name, name).checked(policy))


def _in_this_process(options: RunOptions, ref: HeldPolicy) -> RunOptions:
    """The options with `workers` 0, and a directory of its own where none is given."""
    if options.workers not in ("auto", "0"):
        raise UserError(
            f"{ref.name} runs in this process only: leave `workers` out, or give the policy by a name or as "
            "'module:Class'."
        )
    out = options.out or _fresh(RUNS / f"{load_suite(options.suite).name}-{ref.label(ref.declared())}")
    return dataclasses.replace(options, workers="0", out=out)


def _fresh(stem: Path) -> Path:
    """The first of stem-instance1, stem-instance2, ... that is not there."""
    return next(
        p for n in itertools.count(1) if not (p := stem.with_name(f"{stem.name}-instance{n}")).exists()
    )


def _importable(kind: type, name: str) -> bool:
    """Whether another process finds this class under its name."""
    if kind.__module__ == "__main__":
        return False
    try:
        return load_object(name) is kind
    except UserError:
        return False


def _class_name(policy: object) -> str:
    kind = policy if isinstance(policy, type) else type(policy)
    return f"{kind.__module__}:{kind.__qualname__}"


def _suite_name(suite: str | os.PathLike[str] | Suite) -> str:
    return register_suite(suite).name if isinstance(suite, Suite) else str(_path(suite, "suite"))


def _path(value: Any, name: str) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name} is {one_line(repr(value), 100)}; it must be a text or a path.")
    return Path(value)


def _several(words: Any) -> tuple[str, ...]:
    """One word or several, as texts."""
    return tuple(map(str, [words] if isinstance(words, str | int) else words))
