"""What is to be run and where, known before anything runs; as far as possible before the policy is loaded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from apt_bench.core.errors import UserError
from apt_bench.core.jsonable import jsonable
from apt_bench.core.text import file_name
from apt_bench.policies.base import PolicySpec
from apt_bench.policies.registry import PolicyRef, find_policy
from apt_bench.rollout import identity
from apt_bench.rollout.options import RunOptions, select
from apt_bench.rollout.stopping import Sequential, open_rule
from apt_bench.rollout.workers import Video
from apt_bench.runs.records import RunStore, finished_keys, protocol_hash
from apt_bench.suites import EpisodeKey, EpisodeSpec, Suite

RUNS = Path("results/runs")
"""Where runs lie by default."""

INTERFACE = ("cameras", "horizon", "execute", "actions", "privileged")
"""What a class declares that a run directory must agree with to be taken at its word."""


@dataclass(frozen=True)
class Plan:
    """What is to be run, and where it is recorded."""

    suite: Suite
    specs: tuple[EpisodeSpec, ...]
    policy: PolicyRef
    policy_spec: PolicySpec
    execute: int
    protocol: dict[str, Any]
    out: Path
    finished: frozenset[EpisodeKey]
    rule: Sequential | None = None  # then `specs` is what it may play, in its order
    unknown: str = ""  # of a dry plan: what only the loaded policy says

    @property
    def todo(self) -> list[EpisodeSpec]:
        """Episodes without a result, as far as a rule may still play them."""
        if self.rule and self.rule.over:
            return []
        return [s for s in self.specs if s.key not in self.finished]

    @property
    def over(self) -> bool:
        """Whether nothing is left to run."""
        return not self.todo and (self.rule is None or self.rule.over)


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
    out = options.out or _default(options, suite, ref, policy_spec, protocol)
    finished = finished_keys(RunStore(out).episodes()) if os.path.isdir(out) else set()
    rule = None
    if options.against is not None:
        rule = open_rule(options.against, options.margin, protocol, specs, out, bool(finished))
        specs = rule.specs
    return Plan(suite, specs, ref, policy_spec, execute, protocol, out, frozenset(finished), rule)


def _default(
    options: RunOptions, suite: Suite, ref: PolicyRef, spec: PolicySpec, protocol: Mapping[str, Any]
) -> Path:
    """The run directory of this suite, policy and protocol. One that an older version began goes on under the name that
    it has: that of the policy's class."""
    tail = "-sequential" if options.against is not None else ""
    out = RUNS / f"{suite.name}-{ref.label(spec)}-{protocol_hash(protocol)}{tail}"
    if os.path.exists(out):  # False also for what is too long to be a path; who writes there says so
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
    """The plan of a run that has nothing left to do, found without loading the policy; None where something is left, or
    where only the policy can say."""
    for path, spec in _recorded(options, ref):
        found = plan(options, suite, specs, ref, spec)
        if found.out.resolve() == path.resolve() and found.over:
            return found
    return None


def _recorded(options: RunOptions, ref: PolicyRef) -> Iterator[tuple[Path, PolicySpec]]:
    """Runs of this class with these arguments and the weights that lie there now, and what its policy declared."""
    if options.out is None:
        found = _runs(RUNS)
    else:
        found = iter(
            [(options.out, RunStore(options.out).run())] if os.path.isfile(options.out / "run.json") else []
        )
    asked = {"policy": ref.policy, "args": jsonable(dict(ref.args))}
    declared, digest = ref.declared(), None
    for path, run in found:
        noted = run.get("policy", {})
        if any(noted.get(k) != v for k, v in asked.items()):
            continue
        try:
            spec = PolicySpec.from_record(noted)
        except UserError:
            continue
        if declared and any(getattr(declared, k) != getattr(spec, k) for k in INTERFACE):
            continue  # the class has changed, or it declares itself when it is made
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
    """What `run` would do, without loading the policy: what it declares comes from its class, or from the run directory
    that goes on. `unknown` says what neither tells."""
    Video.parse(options.video)
    suite, specs = select(options)
    ref = find_policy(options.policy, options.policy_args, options.file)
    ref.check()
    for path, spec in _recorded(options, ref):
        found = plan(options, suite, specs, ref, spec)
        if found.out.resolve() == path.resolve():
            return found
    declared = ref.declared()
    place = "" if options.out else ", and so the run directory's name"
    if declared is not None:
        found = plan(options, suite, specs, ref, ref.named(declared))
        unknown = f"what its arguments change of what its class declares{place}" if ref.args else ""
        return dataclasses.replace(found, unknown=unknown)
    execute = options.execute or 10
    stand_in = PolicySpec(file_name(ref.name), execute=execute, horizon=execute)
    out = options.out or RUNS / f"{suite.name}-{stand_in.name}-..."
    found = plan(dataclasses.replace(options, out=out), suite, specs, ref, stand_in)
    return dataclasses.replace(found, unknown=f"its cameras, its execute horizon, its weights{place}")
