"""The plan of a run: which episodes, under which protocol, in which directory. Made before anything runs, and without
loading the policy where that is possible."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from apt_bench.core import provenance
from apt_bench.core.errors import UserError
from apt_bench.core.jsonable import jsonable
from apt_bench.core.text import file_name
from apt_bench.core.tracking import find_tracker
from apt_bench.policies.base import PolicySpec
from apt_bench.policies.registry import PolicyRef, find_policy
from apt_bench.rollout import identity
from apt_bench.rollout.options import Execution, RunOptions
from apt_bench.rollout.stopping import Sequential, open_rule
from apt_bench.rollout.video import Video
from apt_bench.runs.protocol import protocol_hash
from apt_bench.runs.records import RunStore, finished_keys
from apt_bench.suites import EpisodeKey, EpisodeSpec, Suite, load_suite, probes

RUNS = Path("results/runs")
"""The default folder of run directories."""

INTERFACE = ("cameras", "horizon", "execute", "actions", "privileged")
"""Fields of a policy's declaration. Where the class now declares other values than a run directory records, that
record is not used."""


@dataclass(frozen=True)
class Plan:
    """What is to be run, and where it is recorded.

    Args:
        suite: The suite.
        specs: The episodes; with a rule, those that it may request, in its order.
        policy: How the policy is made.
        policy_spec: What it declares.
        execute: Execute horizon.
        protocol: Everything that may change a score.
        out: The run directory.
        finished: Episodes that have a result.
        rule: The stopping rule, if any.
        unknown: In a dry plan, what cannot be determined without loading the policy.
    """

    suite: Suite
    specs: tuple[EpisodeSpec, ...]
    policy: PolicyRef
    policy_spec: PolicySpec
    execute: int
    protocol: dict[str, Any]
    out: Path
    finished: frozenset[EpisodeKey]
    rule: Sequential | None = None
    unknown: str = ""

    @property
    def todo(self) -> list[EpisodeSpec]:
        """Episodes without a result; none once the rule has decided."""
        if self.rule and self.rule.over:
            return []
        return [s for s in self.specs if s.key not in self.finished]

    @property
    def over(self) -> bool:
        """Whether nothing is left to run."""
        return not self.todo and (self.rule is None or self.rule.over)


def policy_of(execution: Execution, args: Mapping[str, Any] | None = None) -> PolicyRef:
    """The policy that the options name, with its arguments; `args` replaces those of --policy-arg.

    Raises:
        UserError: See `find_policy`.
    """
    return find_policy(
        execution.policy,
        execution.policy_args if args is None else args,
        execution.file or execution.checkpoint,
        execution.servers,
        execution.llm,
    )


def select(options: RunOptions) -> tuple[Suite, tuple[EpisodeSpec, ...]]:
    """The suite and the requested episodes.

    Raises:
        UserError: An unknown suite, cell, task, probe or tracker, or a simulator that is not the suite's.
    """
    chosen = options.selection
    suite = load_suite(chosen.suite)
    find_tracker(options.output.track)
    provenance.require(suite.name, suite.simulator, options.execution.unpinned)
    specs = suite.select(
        chosen.cells or None,
        chosen.tasks or None,
        chosen.episodes,
        chosen.seed,
        chosen.instruction_source,
        chosen.limit,
    )
    if not specs:
        raise UserError("None of these tasks is available. `apt-bench ls tasks` gives the reasons.")
    if options.stopping.against is not None:
        RunStore.open(options.stopping.against)
    if chosen.probes or chosen.custom:
        cells = list(dict.fromkeys(s.key.cell for s in specs))
        every = suite.select(cells, episodes=1, seed=chosen.seed, instruction=chosen.instruction_source)
        custom = chosen.custom.sentences(suite, specs) if chosen.custom else {}
        specs = probes.expand(specs, chosen.probes, every, custom)
    return suite, tuple(specs)


def plan(
    options: RunOptions,
    suite: Suite,
    specs: tuple[EpisodeSpec, ...],
    ref: PolicyRef,
    policy_spec: PolicySpec,
) -> Plan:
    """Determine the protocol, the run directory and the episodes that are finished there.

    Raises:
        UserError: An execute horizon that does not fit the policy's chunk, or a stopping rule that cannot hold.
    """
    selection, stopping = options.selection, options.stopping
    execute = options.execution.execute_horizon or min(policy_spec.execute, policy_spec.horizon)
    if execute > policy_spec.horizon:
        raise UserError(
            f"--execute-horizon must be between 1 and the policy's chunk of {policy_spec.horizon}, not {execute}."
        )
    custom = selection.custom.digest if selection.custom else None
    protocol = identity.protocol(
        suite, policy_spec, execute, selection.seed, selection.instruction_source, custom
    )
    out = options.output.out or _default(options, suite, ref, policy_spec, protocol)
    finished = finished_keys(RunStore(out).lines()) if os.path.isdir(out) else set()
    rule = None
    if stopping.against is not None:
        rule = open_rule(stopping.against, stopping.margin, protocol, specs, out, bool(finished))
        specs = rule.specs
    return Plan(suite, specs, ref, policy_spec, execute, protocol, out, frozenset(finished), rule)


def _default(
    options: RunOptions, suite: Suite, ref: PolicyRef, spec: PolicySpec, protocol: Mapping[str, Any]
) -> Path:
    """The default run directory of this suite, policy and protocol. A directory that an older version named after the
    policy's class is continued under that name."""
    tail = "-sequential" if options.stopping.against is not None else ""
    out = RUNS / f"{suite.name}-{ref.label(spec)}-{protocol_hash(protocol)}{tail}"
    if os.path.exists(out):  # False also for a path that is too long; writing there raises the error
        return out
    pattern = f"{suite.name}-*-{protocol_hash(protocol)}{tail}"
    for folder, _ in _runs(RUNS):
        if not fnmatchcase(folder.name, pattern):
            continue
        try:
            if RunStore(folder).earlier(protocol, ref.identity(spec)):
                return folder
        except UserError:
            continue
    return out


def _runs(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The readable run directories in a folder, each with its run.json."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            yield path, RunStore.open(path).run()
        except UserError:
            continue


def finished_plan(
    options: RunOptions, suite: Suite, specs: tuple[EpisodeSpec, ...], ref: PolicyRef
) -> Plan | None:
    """The plan of a run whose episodes are all finished, found without loading the policy; None where episodes are left
    or the policy must be loaded to find out."""
    for path, spec in _recorded(options, ref):
        found = plan(options, suite, specs, ref, spec)
        if found.out.resolve() == path.resolve() and found.over:
            return found
    return None


def _recorded(options: RunOptions, ref: PolicyRef) -> Iterator[tuple[Path, PolicySpec]]:
    """Run directories of this class with these arguments and the present weights, with the policy's declaration."""
    out = options.output.out
    if out is None:
        found = _runs(RUNS)
    else:
        found = iter([(out, RunStore(out).run())] if os.path.isfile(out / "run.json") else [])
    identity_now = {"policy": ref.policy, "args": jsonable(ref.own_args)}
    declared, digest = ref.declared(), None
    for path, run in found:
        record = run.get("policy", {})
        if any(record.get(k) != v for k, v in identity_now.items()):
            continue
        try:
            spec = PolicySpec.from_record(record)
        except UserError:
            continue
        if declared and any(getattr(declared, k) != getattr(spec, k) for k in INTERFACE):
            continue  # the class has changed, or its declaration is complete only once it is made
        digest, source = digest or ref.digest(), spec.provenance
        if digest == source.weights_sha256 if digest else not _newer(source.weights, path / "run.json"):
            yield path, ref.named(spec)


def _newer(weights: str | None, than: Path) -> bool:
    """Whether the weights are files that were written after the run."""
    try:
        path = Path(weights or "")
        files = [path, *path.rglob("*")] if weights and path.exists() else []
        return any(f.stat().st_mtime > than.stat().st_mtime for f in files)
    except (OSError, ValueError):
        return True


def dry_plan(options: RunOptions) -> Plan:
    """The plan that `run` would follow, made without loading the policy: its declaration comes from the class or from
    the run directory that is continued. `unknown` names what neither gives."""
    execution, out = options.execution, options.output.out
    Video.parse(options.output.video)
    suite, specs = select(options)
    ref = policy_of(execution)
    ref.check()
    for path, spec in _recorded(options, ref):
        found = plan(options, suite, specs, ref, spec)
        if found.out.resolve() == path.resolve():
            return found
    declared = ref.declared()
    place = "" if out else ", and so the run directory's name"
    if declared is not None:
        found = plan(options, suite, specs, ref, ref.named(declared))
        unknown = f"what the arguments change in the class's declaration{place}" if ref.own_args else ""
        return dataclasses.replace(found, unknown=unknown)
    execute = execution.execute_horizon or 10
    stand_in = PolicySpec(file_name(ref.name), execute=execute, horizon=execute)
    out = out or RUNS / f"{suite.name}-{stand_in.name}-..."
    found = plan(options.replace(out=out), suite, specs, ref, stand_in)
    return dataclasses.replace(found, unknown=f"its cameras, its execute horizon, its weights{place}")
