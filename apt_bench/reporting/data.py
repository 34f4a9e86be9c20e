"""Runs as data frames: one row per episode, and one summary per cell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from apt_bench import stats
from apt_bench.core.errors import UserError
from apt_bench.records import EpisodeRecord, RunStore, differing_settings, protocol_hash, sequential_words
from apt_bench.suites import STALE, EpisodeKey, Suite, load_suite

COVERAGE_GATE = 0.98
"""Below this share of finished episodes a cell does not enter an average."""

DEFAULT_PROMPT = "default"

KEY = ["suite", "cell", "task", "init", "seed", "prompt"]


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
    def asked(self) -> dict[tuple[str, str], int]:
        """Episodes that were asked for, by (suite, cell)."""
        return requested(self.info, self.frame, str(self.protocol.get("suite", "")))

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
        return {str(c): {str(t): str(w) for t, w in v.items()} for c, v in cells if isinstance(v, Mapping)}


def load_run(path: Path, label: str | None = None) -> Run:
    """Read a run directory. Raises UserError where it holds no run or a damaged one."""
    store = RunStore.open(path)
    info = store.run()
    policy = info.get("policy")
    name = policy.get("name") if isinstance(policy, Mapping) else policy
    frame = episode_frame(store.lines())
    if not label:
        label = str(name or (frame.policy.iloc[0] if len(frame) else path.name))
    own = (frame.prompt == DEFAULT_PROMPT).to_numpy(dtype=bool)
    return Run(label, path, store.protocol(), info, frame[own], frame[~own])


_FIRST = ("libero_pro", "libero", "rigid_pick_place", "clutter_pick_place", "composite", "libero_compose")


def suite_names(runs: Iterable[Run]) -> list[str]:
    """Suites that occur in the runs: the paper's in its order, then others."""
    names = {s for r in runs for s, _ in r.asked if s}
    return [*(s for s in _FIRST if s in names), *sorted(names - {*_FIRST})]


def load_runs(arguments: Sequence[str]) -> list[Run]:
    """Runs given as `DIR` or `NAME=DIR`. Equal labels are told apart by their directories' names."""
    runs = []
    for argument in arguments:
        name, sep, rest = argument.partition("=")
        named = bool(sep) and not Path(argument).exists()
        runs.append(load_run(Path(rest if named else argument), name if named else None))
    paths = [r.path.resolve() for r in runs]
    if len(set(paths)) < len(paths):
        raise UserError("The same run is given twice. Name each run once.")
    for parts in (1, 2, 99):  # of the path, until no two labels agree
        labels = [r.label for r in runs]
        runs = [
            dataclasses.replace(r, label=f"{r.label.split(' (')[0]} ({'/'.join(path.parts[-parts:])})")
            if labels.count(r.label) > 1
            else r
            for r, path in zip(runs, paths, strict=True)
        ]
    return runs


def episode_frame(records: Iterable[EpisodeRecord]) -> pd.DataFrame:
    """One row per key; of several records of a key the one that counts (`RunStore.episodes`).

    `klass` is the outcome's class: `success`, `error`, the class of failure, or the outcome where none was recorded.
    `told`, `grasped_told`, `memorised`, `first`: see `follows_language`. `sec_*` and `score_*`: one column per part.
    """
    rows: dict[EpisodeKey, dict[str, Any]] = {}
    for r in records:
        if r.key in rows and r.outcome == "error" and rows[r.key]["outcome"] != "error":
            continue
        told, grasped_told, memorised, first = follows_language(r.events)
        scores = r.events.get("scores")
        rows[r.key] = {
            **{name: getattr(r.key, name) for name in KEY},
            "policy": r.policy,
            "prompt_text": r.prompt,
            "outcome": r.outcome,
            "klass": r.failure or r.outcome if r.outcome in ("failure", "timeout") else r.outcome,
            "steps": r.steps,
            "decisions": r.decisions,
            "defects": ", ".join(r.flags),
            "start_hash": r.start_hash,
            "end_hash": r.end_hash,
            "error": r.error,
            "video": r.video,
            "first": first,
            "told": told,
            "grasped_told": grasped_told,
            "memorised": memorised,
            **{f"sec_{k}": _number(v) for k, v in r.seconds.items()},
            **{f"score_{k}": _number(v) for k, v in (scores if isinstance(scores, Mapping) else {}).items()},
        }
    frame = pd.DataFrame(list(rows.values()), columns=None if rows else _COLUMNS)
    for column in ("suite", "cell", "task", "prompt", "policy", "prompt_text", "outcome", "klass", "first"):
        frame[column] = frame[column].astype("category")
    frame["success"] = frame.outcome == "success"
    frame["done"] = frame.outcome != "error"
    return frame


_COLUMNS = [
    *KEY, "policy", "prompt_text", "outcome", "klass", "steps", "decisions", "defects",
    "start_hash", "end_hash", "error", "video", "first", "told", "grasped_told", "memorised",
]  # fmt: skip


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def follows_language(events: Mapping[str, Any]) -> tuple[bool | None, bool | None, bool | None, str | None]:
    """From an episode's events: was the first thing touched one that the instruction is about; was the first thing
    grasped one that the goal wants moved; was the unperturbed task done instead (None where it is the same task); name
    of the first thing touched."""
    touched, grasped = _first(events.get("touched")), _first(events.get("grasped"))
    targets = events.get("targets")
    told = touched in targets if touched is not None and isinstance(targets, list) and targets else None
    goal = events.get("goal")
    movable = {_argument(atom) for atom in goal} if isinstance(goal, Mapping) else set()
    grasped_told = grasped in movable if grasped is not None and movable else None
    memorised = events.get("shortcut") is not None if events.get("base_goal") else None
    return told, grasped_told, memorised, touched


def _first(steps: Any) -> str | None:
    if not isinstance(steps, Mapping):
        return None
    timed = [(s, name) for name, s in steps.items() if isinstance(s, int | float)]
    return min(timed)[1] if timed else None


def _argument(atom: Any) -> str:
    """First argument of `predicate(a, b)`."""
    return str(atom).partition("(")[2].rstrip(")").split(",")[0].strip()


def requested(info: Mapping[str, Any], frame: pd.DataFrame, suite: str) -> dict[tuple[str, str], int]:
    """How many episodes were asked for, by (suite, cell), from run.json's `requested` (cell -> task -> count). A cell
    that run.json does not name counts as asked for as far as it has records. `suite`: of a run without any record."""
    suites = [str(s) for s in frame.suite.unique()] or [suite]
    asked = {(str(s), str(c)): len(g) for (s, c), g in frame.groupby(["suite", "cell"], observed=True)}
    noted = info.get("requested")
    if isinstance(noted, Mapping):
        for cell, count in noted.items():
            total = (
                sum(v for v in count.values() if isinstance(v, int)) if isinstance(count, Mapping) else count
            )
            if isinstance(total, int) and not isinstance(total, bool):
                suite = next((s for s, c in asked if c == cell), suites[0])
                asked[suite, str(cell)] = max(total, asked.get((suite, str(cell)), 0))
    return asked


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
    found = {}
    for suite, cell in sorted({*groups, *(run.asked if frame is None else ())}, key=suite_order):
        group = groups.get((suite, cell))
        n = 0 if group is None else len(group)
        done = 0 if group is None else int(group.done.sum())
        found[suite, cell] = CellSummary(
            suite,
            cell,
            cell_label(suite, cell),
            asked=run.asked.get((suite, cell), n) if frame is None else n,
            done=done,
            successes=0 if group is None else int(group.success.sum()),
            errors=n - done,
            unavailable=run.unavailable.get(cell, {}),
        )
    return found


@cache
def find_suite(name: str) -> Suite | None:
    """The shipped suite of this name, if there is one: a run of another suite is reported under its plain names."""
    try:
        return load_suite(name)
    except UserError:
        return None


def cell_label(suite: str, cell: str) -> str:
    """The cell's label in its suite; made from its name where there is none."""
    known = find_suite(suite)
    try:
        if known:
            return known.cell(cell).label
    except UserError:
        pass
    return cell.upper() if len(cell) <= 7 else cell.replace("_", " ").capitalize()


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
        "this run take no account of the looks, and an early stop makes a difference look larger than it is."
        for r in runs
        if r.sequential
    ]


def protocol_differences(a: Run, b: Run) -> list[str]:
    """The protocol settings that differ and matter, each as `name: a's / b's`."""
    return differing_settings(a.protocol, b.protocol)
