"""The LIBERO arms of the two-stage experiment: policies that were trained on the base tasks of one suite alone.

A training has two runs in `results/reference`: `base-SUITE-ARM-RATE-seedN-libero`, on the tasks of its training, and
`base-SUITE-ARM-RATE-seedN-libero_pro`, on LIBERO-PRO. Rates have the names of `two_stage_effect.yaml`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from apt_bench.analysis.run import load_run
from benchmarks.two_stage_tables import Sum, interval, markdown, text

NAME = re.compile(r"base-([a-z]+)-(one-stage|two-stages)-(\w+)-seed(\d+)-(libero|libero_pro)")
SUITES = ("object", "spatial", "goal", "long")
ONE, TWO = "one-stage", "two-stages"
COLUMNS = {
    "trained tasks": ("", "success"),
    "position": ("_pos", "success"),
    "task": ("_task", "success"),
    "task: memorised task done": ("_task", "original_task_done"),
    "trained tasks: right object first": ("", "first_contact_correct"),
    "position: right object first": ("_pos", "first_contact_correct"),
    "task: right object first": ("_task", "first_contact_correct"),
}
"""Title -> ending of the cell's name, and the column of the records."""

Training = tuple[str, str, str, int]
"""Suite, arm, rate and seed."""


def load_trainings(reference: Path) -> dict[Training, pd.DataFrame]:
    """The finished episodes of every training, indexed by cell, task and initial state."""
    parts: dict[Training, list[pd.DataFrame]] = defaultdict(list)
    for folder in sorted(reference.glob("base-*")):
        if found := NAME.fullmatch(folder.name):
            suite, arm, rate, seed, _ = found.groups()
            frame = load_run(folder).frame
            # An episode that touched nothing did not touch the right object first.
            first = frame.first_contact_correct.astype("boolean").fillna(False)
            frame = frame.assign(
                cell=frame.cell.astype(str), task=frame.task.astype(str), first_contact_correct=first
            )
            columns = sorted({column for _, column in COLUMNS.values()})
            parts[suite, arm, rate, int(seed)].append(
                frame[frame.finished].set_index(["cell", "task", "init"])[columns]
            )
    return {training: pd.concat(frames).astype(float) for training, frames in parts.items()}


def libero_table(reference: Path) -> str:
    """Every arm of each suite and of all suites, at every rate, and the difference of the stages, in Markdown."""
    trainings = load_trainings(reference)
    rows = []
    for suite in (*SUITES, ""):
        suites = (suite,) if suite else SUITES
        label = suite or "all suites"
        groups = sorted({(rate, arm) for s, arm, rate, _ in trainings if s in suites})
        for rate, arm in groups:
            if not (pooled := _pooled(trainings, suites, arm, rate)):
                continue
            found = [interval([_sum(t, suites, *c) for t in pooled.values()]) for c in COLUMNS.values()]
            rows.append(
                [label, f"{arm} ({rate})", str(len(pooled)), *(text(*f, within=(0, 100)) for f in found)]
            )
        for rate in sorted({rate for rate, _ in groups}):
            one, two = (_pooled(trainings, suites, arm, rate) for arm in (ONE, TWO))
            both = [(two[seed], one[seed]) for seed in two if seed in one]
            if both:
                found = [interval([_difference(a, b, suites, *c) for a, b in both]) for c in COLUMNS.values()]
                shown = (text(*f, form="+.0f") for f in found)
                rows.append([label, f"{TWO} - {ONE} ({rate})", str(len(both)), *shown])
    head = ["suite", "arm", "trainings", *COLUMNS]
    about = "### LIBERO: trained on the base tasks of one suite alone"
    return "\n".join([about, "", *markdown(head, rows), ""])


def _pooled(
    trainings: Mapping[Training, pd.DataFrame], suites: Sequence[str], arm: str, rate: str
) -> dict[int, pd.DataFrame]:
    """Seed -> the episodes of these suites, for the seeds that all of them have."""
    found = {
        seed: [trainings[key] for suite in suites if (key := (suite, arm, rate, seed)) in trainings]
        for seed in sorted({seed for *_, seed in trainings})
    }
    return {seed: pd.concat(frames) for seed, frames in found.items() if len(frames) == len(suites)}


def _values(frame: pd.DataFrame, suites: Sequence[str], ending: str, column: str) -> pd.Series:
    return frame[frame.index.get_level_values("cell").isin([s + ending for s in suites])][column]


def _sum(frame: pd.DataFrame, suites: Sequence[str], ending: str, column: str) -> Sum:
    values = _values(frame, suites, ending, column)
    return float(values.sum()), len(values)


def _difference(a: pd.DataFrame, b: pd.DataFrame, suites: Sequence[str], ending: str, column: str) -> Sum:
    """Of a - b, over the episodes that both have."""
    difference = (_values(a, suites, ending, column) - _values(b, suites, ending, column)).dropna()
    return float(difference.sum()), len(difference)
