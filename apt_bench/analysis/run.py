"""Runs as data frames: one row per episode, and one summary per cell."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from apt_bench.analysis import stats
from apt_bench.analysis.frame import DEFAULT_PROMPT, episode_frame
from apt_bench.analysis.frame import KEY as KEY
from apt_bench.core.errors import UserError
from apt_bench.core.files import reason
from apt_bench.core.text import one_line, plain
from apt_bench.runs.records import RunStore, differing_settings, protocol_hash, sequential_words
from apt_bench.suites import STALE, Suite, load_suite
from apt_bench.suites import suite_names as shipped_suites

COVERAGE_GATE = 0.98
"""Below this share of finished episodes a cell does not enter an average."""

LABEL_LENGTH, CELL_LENGTH = 120, 60
"""Characters of a run's name and of a cell's label in a report, at most."""


@dataclass(frozen=True)
class Run:
    """One run directory, read."""

    label: str
    path: Path
    protocol: Mapping[str, Any]
    info: Mapping[str, Any]  # run.json
    frame: pd.DataFrame  # one row per episode under the cell's own prompt, see `episode_frame`
    probed: pd.DataFrame  # the same for episodes under a language probe's prompt

    @property
    def protocol_id(self) -> str:
        """Hash of the protocol card."""
        return protocol_hash(self.protocol)

    @property
    def policy(self) -> Mapping[str, Any]:
        """What run.json says of the policy, what it says `about` itself (architecture, ablation) included."""
        policy = self.info.get("policy")
        if not isinstance(policy, Mapping):
            return {}
        about = policy.get("about")
        return {**policy, **about} if isinstance(about, Mapping) else policy

    @cached_property
    def identity(self) -> str | None:
        """What tells one policy from another: class, arguments, weights and execute horizon, never a name. None where
        run.json does not say (trials, imported files): then nothing is known to be the same policy."""
        policy = self.info.get("policy")
        if not isinstance(policy, Mapping) or not policy.get("policy"):
            return None
        weights = policy.get("weights_sha256") or policy.get("weights")
        parts = [policy["policy"], self.settings, weights, self.protocol.get("execute")]
        return json.dumps(parts, sort_keys=True, default=str)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The policy's arguments, without the path of weights that are known by their hash."""
        args, path = self.policy.get("args"), self.policy.get("weights")
        if not isinstance(args, Mapping):
            return {}
        hashed = bool(self.policy.get("weights_sha256"))
        weights = (
            os.path.normpath(path) if hashed and isinstance(path, str) else None
        )  # `./x` and `x` are one
        return {k: v for k, v in args.items() if not (isinstance(v, str) and os.path.normpath(v) == weights)}

    @cached_property
    def asked(self) -> dict[tuple[str, str], int]:
        """Episodes that were asked for under the cells' own prompts, by (suite, cell)."""
        return _asked(self.info.get("requested"), self.frame, self._suite)

    @cached_property
    def asked_probes(self) -> dict[tuple[str, str, str], int]:
        """Episodes that were asked for under language probes, by (suite, cell, probe). A run that does not say what was
        asked counts what it has."""
        noted = self.info.get("requested_probes")
        noted = {plain(k, keep=""): v for k, v in noted.items()} if isinstance(noted, Mapping) else {}
        there = [str(p) for p in self.probed.prompt.unique()]
        found = {}
        for probe in dict.fromkeys([*noted, *there]):
            part = self.probed[self.probed.prompt == probe]
            for (suite, cell), number in _asked(noted.get(probe), part, self._suite).items():
                found[suite, cell, probe] = number
        return found

    @property
    def _suite(self) -> str:
        """The suite of cells without any record."""
        names = [str(s) for s in self.frame.suite.unique()]
        return names[0] if names else plain(self.protocol.get("suite", ""), keep="")

    @property
    def sequential(self) -> Mapping[str, Any]:
        """The sequential rule that this run was played under and where it stands; empty where there was none."""
        noted = self.info.get("sequential")
        return noted if isinstance(noted, Mapping) else {}

    @cached_property
    def unavailable(self) -> dict[str, dict[str, str]]:
        """Cell -> task -> why it cannot be run, as the runner noted it."""
        noted = self.info.get("unavailable")
        cells = noted.items() if isinstance(noted, Mapping) else ()
        return {
            plain(c, keep=""): {str(t): str(w) for t, w in v.items()}
            for c, v in cells
            if isinstance(v, Mapping)
        }


def load_run(path: Path, label: str | None = None) -> Run:
    """Read a run directory. Raises UserError where it holds no run or a damaged one."""
    try:
        store = RunStore.open(path)
        info, protocol = store.run(), store.protocol()
        frame = episode_frame(store.lines())
        RunStore.open(path)  # else it vanished meanwhile, and what was read is not all
    except (OSError, ValueError) as error:  # it vanished, or the path has a null byte
        raise UserError(f"Cannot read the run in {path}: {reason(error)}.") from None
    policy = info.get("policy")
    name = policy.get("name") if isinstance(policy, Mapping) else policy
    if not label:
        label = str(name or (frame.policy.iloc[0] if len(frame) else path.name))
    own = (frame.prompt == DEFAULT_PROMPT).to_numpy(dtype=bool)
    return Run(one_line(label, LABEL_LENGTH), path, protocol, info, frame[own], frame[~own])


_FIRST = ("libero_pro", "libero", "rigid_pick_place", "clutter_pick_place", "composite", "libero_compose")


def suite_names(runs: Iterable[Run]) -> list[str]:
    """Suites that occur in the runs: the paper's in its order, then others."""
    names = {s for r in runs for s, _ in r.asked if s}
    return [*(s for s in _FIRST if s in names), *sorted(names - {*_FIRST})]


def load_runs(arguments: Sequence[str]) -> list[Run]:
    """Runs given as `DIR` or `NAME=DIR`. Equal labels are told apart by their directories' names."""
    runs = []
    for argument in arguments:
        name, path = split_argument(argument)
        runs.append(load_run(path, name))
    paths = [r.path.resolve() for r in runs]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UserError(f"The run {path} is given twice. Name each run once.")
    labels = _distinct([r.label for r in runs], paths)
    return [dataclasses.replace(r, label=label) for r, label in zip(runs, labels, strict=True)]


def split_argument(argument: str) -> tuple[str | None, Path]:
    """Name and directory of `NAME=DIR`; a directory whose own name has a `=` is one."""
    name, sep, rest = argument.partition("=")
    named = bool(sep) and not os.path.lexists(argument.replace("\0", "?"))
    return (name, Path(rest)) if named else (None, Path(argument))


def _distinct(labels: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """The labels, equal ones with as much of their paths as tells all of them apart."""
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


def _asked(noted: Any, frame: pd.DataFrame, suite: str) -> dict[tuple[str, str], int]:
    """How many episodes were asked for, by (suite, cell): of each task what run.json notes (cell -> task -> count), and
    at least as many as have records. suite: of a run without any record."""
    suites = [str(s) for s in frame.suite.unique()] or [suite]
    groups = frame.groupby(["suite", "cell", "task"], observed=True)
    counts = {(str(s), str(c), str(t)): len(g) for (s, c, t), g in groups}
    of = {cell: name for name, cell, _ in counts}
    for cell, tasks in noted.items() if isinstance(noted, Mapping) else ():
        cell = plain(cell, keep="")
        for task, number in tasks.items() if isinstance(tasks, Mapping) else ():
            if isinstance(number, int) and not isinstance(number, bool):
                key = of.get(cell, suites[0]), cell, plain(task, keep="")
                counts[key] = max(number, counts.get(key, 0))
    found: dict[tuple[str, str], int] = {}
    for (name, cell, _), number in counts.items():
        found[name, cell] = found.get((name, cell), 0) + number
    return found


@dataclass(frozen=True)
class CellSummary:
    """One cell of one run. `done` = success, failure or timeout; errors are missing data."""

    suite: str
    cell: str
    label: str
    asked: int
    done: int
    successes: int
    errors: int
    unavailable: Mapping[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> stats.Estimate:
        """Success rate with Wilson's 95% interval; nan where nothing is done."""
        value = self.successes / self.done if self.done else math.nan
        return stats.Estimate(value, *stats.wilson(self.successes, self.done))

    @property
    def missing(self) -> int:
        """Episodes asked for that have no score."""
        return max(0, self.asked - self.done)

    @property
    def covered(self) -> bool:
        """Whether enough of it is done to enter an average."""
        return self.done > 0 and self.done >= COVERAGE_GATE * self.asked

    @property
    def bounds(self) -> tuple[float, float]:
        """Success rate if everything that is missing had failed, or had succeeded."""
        total = max(self.asked, self.done)
        return (self.successes / total, (self.successes + total - self.done) / total) if total else (0.0, 1.0)


def cell_summaries(run: Run, frame: pd.DataFrame | None = None) -> dict[tuple[str, str], CellSummary]:
    """Summaries by (suite, cell), in the suite's order. With `frame`, of these episodes only."""
    part = run.frame if frame is None else frame
    groups = {(str(s), str(c)): g for (s, c), g in part.groupby(["suite", "cell"], observed=True)}
    keys = sorted({*groups, *(run.asked if frame is None else ())}, key=suite_order)
    asked = run.asked if frame is None else {}
    return {key: _summary(run, key[0], key[1], groups.get(key), asked.get(key)) for key in keys}


def probe_summaries(run: Run) -> dict[tuple[str, str, str], CellSummary]:
    """Summaries by (suite, cell, language probe), in the suite's order."""
    names = ["suite", "cell", "prompt"]
    groups = {(str(s), str(c), str(p)): g for (s, c, p), g in run.probed.groupby(names, observed=True)}
    order = list(dict.fromkeys(p for _, _, p in run.asked_probes))
    keys = sorted(run.asked_probes, key=lambda k: (suite_order(k[:2]), order.index(k[2])))
    return {key: _summary(run, key[0], key[1], groups.get(key), run.asked_probes[key]) for key in keys}


def _summary(run: Run, suite: str, cell: str, group: pd.DataFrame | None, asked: int | None) -> CellSummary:
    n = 0 if group is None else len(group)
    done = 0 if group is None else int(group.done.sum())
    return CellSummary(
        suite,
        cell,
        cell_label(suite, cell),
        asked=n if asked is None else asked,
        done=done,
        successes=0 if group is None else int(group.success.sum()),
        errors=n - done,
        unavailable=run.unavailable.get(cell, {}),
    )


@cache
def find_suite(name: str) -> Suite | None:
    """The shipped suite of this name, if there is one: a run of another suite is reported under its plain names, and a
    run never makes its reader open a file that the run names."""
    return load_suite(name) if name in shipped_suites() else None


@cache
def cell_label(suite: str, cell: str) -> str:
    """The cell's label in its suite; made from its name where there is none."""
    known = find_suite(suite)
    try:
        if known:
            return known.cell(cell).label
    except UserError:
        pass
    cell = one_line(cell, CELL_LENGTH)
    return cell.upper() if len(cell) <= 7 else cell.replace("_", " ").capitalize()


@cache
def task_numbers(suite: str, cell: str) -> dict[str, int]:
    """Task -> its number in the cell, as `apt-bench ls tasks` counts; {} where the suite is not known here."""
    known, cell = find_suite(suite), cell.removesuffix(STALE)
    try:
        return {t.name: i for i, t in enumerate(known.cell_tasks(known.cell(cell)))} if known else {}
    except UserError:  # a cell of another version, or LIBERO is not installed
        return {}


def suite_order(key: tuple[str, str]) -> tuple[str, int, str]:
    """Sorts (suite, cell) as the suite's file has them; a stale control follows its cell."""
    suite = find_suite(key[0])
    names = [c.name for c in suite.cells] if suite else []
    base = key[1].removesuffix(STALE)
    return key[0], names.index(base) if base in names else len(names), key[1]


def macro_average(frame: pd.DataFrame) -> stats.Estimate:
    """Mean over cells of the mean over tasks of the success rate, with its task-clustered 95% interval."""
    done = frame[frame.done]
    return stats.macro_mean(
        done.success.to_numpy(dtype=float), done.groupby(["cell", "task"], observed=True).ngroup().to_numpy(),
        done.cell.cat.codes.to_numpy(),
    )  # fmt: skip


def sequential_notes(runs: Iterable[Run]) -> list[str]:
    """A caution for each run that was played under a sequential rule."""
    return [
        f"{r.label} was played under a stopping rule. {sequential_words(r.sequential)} Plain p-values and intervals of "
        "this run take no account of the looks, and an early stop makes a difference look larger than it is. The rule "
        "asks about these tasks, compare about tasks like these as well."
        for r in runs
        if r.sequential
    ]


def protocol_differences(a: Run, b: Run) -> list[str]:
    """The protocol settings that differ and matter, each as `name: a's / b's`."""
    return differing_settings(a.protocol, b.protocol)
