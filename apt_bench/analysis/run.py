"""Reads run directories: what was requested, what ran, and one data frame row per episode."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from apt_bench.analysis.frame import DEFAULT_PROMPT, episode_frame
from apt_bench.core.errors import UserError
from apt_bench.core.files import reason
from apt_bench.core.status import name_step
from apt_bench.core.text import one_line, plain
from apt_bench.runs.metadata import sequential_words
from apt_bench.runs.protocol import protocol_hash
from apt_bench.runs.records import RunStore, no_collection

LABEL_LENGTH = 120
"""Longest name of a run in a report, in characters."""


@dataclass(frozen=True)
class Run:
    """One run directory, read. `load_run` makes it.

    `info` is run.json. `frame` has the episodes under the cells' own prompts, `probed` those under a language probe
    (`episode_frame`).
    """

    label: str
    path: Path
    protocol: Mapping[str, Any]
    info: Mapping[str, Any]
    frame: pd.DataFrame
    probed: pd.DataFrame

    @property
    def protocol_id(self) -> str:
        """Hash of the protocol card."""
        return protocol_hash(self.protocol)

    @property
    def policy(self) -> Mapping[str, Any]:
        """The policy's entry in run.json, with what the policy declares `about` itself (architecture, ablation)."""
        policy = self.info.get("policy")
        if not isinstance(policy, Mapping):
            return {}
        about = policy.get("about")
        return {**policy, **about} if isinstance(about, Mapping) else policy

    @cached_property
    def identity(self) -> str | None:
        """What distinguishes one policy from another: class, arguments, weights and execute horizon, never the name.

        None where run.json does not record it (trials, imported files). Such a policy equals no other.
        """
        policy = self.info.get("policy")
        if not isinstance(policy, Mapping) or not policy.get("policy"):
            return None
        weights = policy.get("weights_sha256") or policy.get("weights")
        parts = [policy["policy"], self.policy_args, weights, self.protocol.get("execute")]
        return json.dumps(parts, sort_keys=True, default=str)

    @property
    def policy_args(self) -> Mapping[str, Any]:
        """The policy's arguments, without the path of weights whose hash is recorded."""
        args, path = self.policy.get("args"), self.policy.get("weights")
        if not isinstance(args, Mapping):
            return {}
        hashed = bool(self.policy.get("weights_sha256"))
        weights = os.path.normpath(path) if hashed and isinstance(path, str) else None  # `./x` equals `x`
        return {k: v for k, v in args.items() if not (isinstance(v, str) and os.path.normpath(v) == weights)}

    @cached_property
    def requested(self) -> dict[tuple[str, str], int]:
        """Number of requested episodes under the cells' own prompts, by (suite, cell)."""
        return _requested(self.info.get("requested"), self.frame, self._suite)

    @cached_property
    def requested_probes(self) -> dict[tuple[str, str, str], int]:
        """Number of requested episodes under language probes, by (suite, cell, probe).

        A run of an older version does not record which were requested. There, the recorded episodes count.
        """
        noted = self.info.get("requested_probes")
        noted = {plain(k, keep=""): v for k, v in noted.items()} if isinstance(noted, Mapping) else {}
        recorded = [str(p) for p in self.probed.prompt.unique()]
        found = {}
        for probe in dict.fromkeys([*noted, *recorded]):
            part = self.probed[self.probed.prompt == probe]
            for (suite, cell), number in _requested(noted.get(probe), part, self._suite).items():
                found[suite, cell, probe] = number
        return found

    @property
    def _suite(self) -> str:
        """The suite of cells without any record."""
        names = [str(s) for s in self.frame.suite.unique()]
        return names[0] if names else plain(self.protocol.get("suite", ""), keep="")

    @property
    def sequential(self) -> Mapping[str, Any]:
        """The run's sequential stopping rule and its state; empty where there was none."""
        noted = self.info.get("sequential")
        return noted if isinstance(noted, Mapping) else {}

    @cached_property
    def unavailable(self) -> dict[str, dict[str, str]]:
        """Cell -> task -> why the task cannot be run."""
        noted = self.info.get("unavailable")
        cells = noted.items() if isinstance(noted, Mapping) else ()
        return {
            plain(c, keep=""): {str(t): str(w) for t, w in v.items()}
            for c, v in cells
            if isinstance(v, Mapping)
        }


def _requested(noted: Any, frame: pd.DataFrame, suite: str) -> dict[tuple[str, str], int]:
    """Number of requested episodes by (suite, cell). For each task it is the number in run.json, and at least the
    number of records.

    noted: run.json's cell -> task -> number. suite: the suite of a run without any record.
    """
    suites = [str(s) for s in frame.suite.unique()] or [suite]
    groups = frame.groupby(["suite", "cell", "task"], observed=True)
    counts = {(str(s), str(c), str(t)): len(g) for (s, c, t), g in groups}
    suite_of = {cell: name for name, cell, _ in counts}
    for cell, tasks in noted.items() if isinstance(noted, Mapping) else ():
        cell = plain(cell, keep="")
        for task, number in tasks.items() if isinstance(tasks, Mapping) else ():
            if isinstance(number, int) and not isinstance(number, bool):
                key = suite_of.get(cell, suites[0]), cell, plain(task, keep="")
                counts[key] = max(number, counts.get(key, 0))
    found: dict[tuple[str, str], int] = {}
    for (name, cell, _), number in counts.items():
        found[name, cell] = found.get((name, cell), 0) + number
    return found


def load_run(path: Path, label: str | None = None) -> Run:
    """Read a run directory.

    Args:
        path: The run directory.
        label: Name of the run in reports. Default: the policy's name.

    Raises:
        UserError: There is no run, or a damaged one.
    """
    try:
        store = RunStore.open(path)
        info, protocol = store.run(), store.protocol()
        with no_collection():
            frame = episode_frame(store.lines())
        RunStore.open(path)  # fails if the directory vanished while it was read
    except (OSError, ValueError) as error:  # it vanished, or the path has a null byte
        raise UserError(f"Cannot read the run in {path}: {reason(error)}.") from None
    policy = info.get("policy")
    name = policy.get("name") if isinstance(policy, Mapping) else policy
    if not label:
        label = str(name or (frame.policy.iloc[0] if len(frame) else path.name))
    own = (frame.prompt == DEFAULT_PROMPT).to_numpy(dtype=bool)
    return Run(one_line(label, LABEL_LENGTH), path, protocol, info, frame[own], frame[~own])


def load_runs(arguments: Sequence[str]) -> list[Run]:
    """Read several runs. Runs with equal labels get parts of their directories' names added.

    Args:
        arguments: Each `DIR` or `NAME=DIR`.

    Raises:
        UserError: A run cannot be read, or is given twice (also through a link).
    """
    runs = []
    for number, argument in enumerate(arguments, 1):
        name_step(f"Reading run {number} of {len(arguments)}")
        name, path = split_argument(argument)
        runs.append(load_run(path, name))
    paths = [r.path.resolve() for r in runs]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UserError(f"The run {path} is given twice. Name each run once.")
    labels = _distinct([r.label for r in runs], paths)
    return [dataclasses.replace(r, label=label) for r, label in zip(runs, labels, strict=True)]


def split_argument(argument: str) -> tuple[str | None, Path]:
    """Name and directory of `NAME=DIR`. If a directory's own name contains `=`, the argument is that directory."""
    name, sep, rest = argument.partition("=")
    named = bool(sep) and not os.path.lexists(argument.replace("\0", "?"))
    return (name, Path(rest)) if named else (None, Path(argument))


def _distinct(labels: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """The labels; equal ones with as many parts of their paths as makes all labels different."""
    for parts in range(1 + max((len(p.parts) for p in paths), default=0)):
        found = [
            f"{label} ({plain('/'.join(path.parts[-parts:]), keep='')})"
            if parts and labels.count(label) > 1
            else label
            for label, path in zip(labels, paths, strict=True)
        ]
        if len(set(found)) == len(found):
            return found
    return [f"{number}: {label}" for number, label in enumerate(labels, 1)]


_FIRST = ("libero_pro", "libero", "rigid_pick_place", "clutter_pick_place", "composite", "libero_compose")


def suite_names(runs: Iterable[Run]) -> list[str]:
    """Suites that occur in the runs: the paper's in its order, then the others by name."""
    names = {s for r in runs for s, _ in r.requested if s}
    return [*(s for s in _FIRST if s in names), *sorted(names - {*_FIRST})]


def sequential_notes(runs: Iterable[Run]) -> list[str]:
    """A caution for each run that used a sequential stopping rule."""
    return [
        f"{r.label} used a stopping rule. {sequential_words(r.sequential)} The plain p-values and intervals of this "
        "run do not account for the interim looks, and an early stop makes a difference look larger than it is. The "
        "stopping rule is about these tasks; compare is also about other tasks like these."
        for r in runs
        if r.sequential
    ]
