"""The table of language probes: what changes when only the instruction changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd

from apt_bench.analysis.contrasts import paired_contrast
from apt_bench.analysis.run import Run
from apt_bench.analysis.suite_labels import cell_label, suite_order
from apt_bench.reporting.coverage import listed
from apt_bench.reporting.table import CELL, RUN, Rate, Row, Table, Value, left, percent, pvalue, right
from apt_bench.suites.probes import PROBES, REPEAT

_PAIR = ["suite", "cell", "task", "init", "seed"]
_COMPARED = [
    "instruction", "success", "outcome_class", "first_contact", "first_contact_correct", "start_hash", "end_hash",
]  # fmt: skip


MEANINGS = {
    "null": "no instruction",
    "swapped": "the instruction of another task",
    "stale": "the old instruction, from before the task was changed",
    "paraphrase": "the same meaning in other words",
    "punctuation": "a capital letter and a full stop",
    "custom": "the user's own sentences",
    REPEAT: "the same instruction again, which shows how much changes by chance",
}
"""What each probe sends."""

CHANGE_MEANING = ("null", "swapped", "stale")
"""Probes after which the instruction no longer names the cell's own task."""

DETAILS = ("pairs", "touch", "outcome", "target")
"""Columns that only the files have: with them, the table is too wide for a page."""


def about_probes(table: Table) -> str:
    """What the probes of a table are, and how to read it."""
    there = {str(r.values["probe"]) for r in table.rows}
    names = ", ".join(f"{name} ({words})" for name, words in MEANINGS.items() if name in there)
    said = f"Each initial state again, under another instruction: {names}. Success always means the cell's own task."
    if other := [name for name in CHANGE_MEANING if name in there]:
        said += (
            f" So a policy that follows its instruction fails under {listed(other)}. A policy that ignores it, or that "
            "knows the goal without it as the oracle does, succeeds there as often as under its own instruction."
        )
    return said


def main_columns(table: Table) -> Table:
    """The table without `DETAILS`, and a note that names them."""
    left_out = ", ".join(c.label for c in table.columns if c.key in DETAILS)
    columns = [c for c in table.columns if c.key not in DETAILS]
    notes = (*table.notes, f"The files have more columns: {left_out}.")
    return dataclasses.replace(table, columns=columns, notes=notes)


def probe_table(runs: Sequence[Run]) -> Table | None:
    """Each probe against the cell's own prompt on the same initial states.

    The noise floor beside it is the change in a repeat of the episode under the same instruction.

    Returns:
        The table, or None where no run has a language probe.
    """
    rows = []
    floors: dict[str, list[str]] = {}  # sentence -> the runs for which it holds
    for run in runs:
        found = _pairs(run)
        if found:
            floor = _floor_in_words(run, [p for (*_, probe), p in found.items() if probe == REPEAT])
            floors.setdefault(floor, []).append(run.label)
        for (suite, cell, probe), pairs in found.items():
            values: dict[str, Value] = {"run": run.label, "cell": cell_label(suite, cell), "probe": probe}
            values |= _values(pairs)
            if probe != REPEAT:
                again = found.get((suite, cell, REPEAT))
                values["floor"] = "not measured" if again is None else Rate.share(_changed(again))
            rows.append(Row(values))
    if not rows:
        return None
    columns = [
        RUN, CELL, left("probe", "Probe"), right("pairs", "Pairs"), right("own", "Success, own prompt"),
        right("probed", "Success, probe"), right("difference", "Difference"), right("p", "p"),
        right("sensitivity", "Sensitivity"), right("floor", "Noise floor"), right("touch", "First contact changes"),
        right("outcome", "Outcome changes"), right("target", "First contact with the own task's objects"),
    ]  # fmt: skip
    notes = (
        "In %, with 95% intervals, paired by initial state. Sensitivity: share of episodes in which the first contact, "
        "the outcome or the final state differs. The probes null, swapped and stale change the meaning: a policy that "
        "reads its instruction then acts differently. The probes paraphrase and punctuation keep the meaning: such a "
        "policy then changes its path at most. Success under every probe means success at the cell's own task.",
        "Noise floor: the sensitivity of repeat, the same episode run again under the same instruction.",
        *(f"{listed(names)}: {sentence}" for sentence, names in floors.items()),
    )
    return Table("probes", "Language probes", columns, rows, notes)


def _floor_in_words(run: Run, repeats: Sequence[pd.DataFrame]) -> str:
    if not repeats and any(probe == REPEAT for *_, probe in run.requested_probes):
        return "the noise floor is not measured yet, because no repeat has a result. Rerun the same command to resume."
    if not repeats:
        return (
            "the noise floor was not measured. Without it, a policy with noise of its own seems to read its "
            "instruction. Rerun the same command with --probe repeat to measure it."
        )
    changed = pd.concat([_changed(pairs) for pairs in repeats])
    return (
        "a repeat under the same instruction changed the first contact, the outcome or the final state in "
        f"{percent(changed.mean())}% of {len(changed)} episodes. Compare the probes with this figure."
    )


def _pairs(run: Run) -> dict[tuple[str, str, str], pd.DataFrame]:
    """Finished episodes that start alike under the cell's own prompt (`_x`) and the probe (`_y`), by (suite, cell,
    probe)."""
    sides = [f.loc[f.finished, [*_PAIR, *_COMPARED, "prompt"]].copy() for f in (run.frame, run.probed)]
    for side in sides:
        for name in ("suite", "cell", "task", "outcome_class", "first_contact", "prompt"):
            side[name] = side[name].astype(object).fillna("")
    sides[1] = sides[1].rename(columns={"prompt": "probe"})
    both = sides[0].merge(sides[1], on=_PAIR)
    both = both[both.start_hash_x == both.start_hash_y]
    groups = both.groupby(["suite", "cell", "probe"])
    return {
        k: groups.get_group(k)
        for k in sorted(groups.groups, key=lambda k: (suite_order(k[:2]), _order(k[2])))
    }


def _order(probe: str) -> tuple[int, str]:
    """The repeat, then the order of `apt_bench.suites.probes`: probes that change the meaning come first."""
    names = [REPEAT, *(name for name in PROBES if name != REPEAT)]
    return (names.index(probe) if probe in names else len(names)), probe


def _values(pairs: pd.DataFrame) -> dict[str, Value]:
    own, probed = pairs.success_x, pairs.success_y
    change = paired_contrast("", pairs.assign(a=probed, b=own, instruction=pairs.instruction_x))
    return {
        "pairs": len(pairs),
        "own": Rate.share(own),
        "probed": Rate.share(probed),
        "difference": Rate.of(change.difference, signed=True),
        "p": pvalue(change.p),
        "sensitivity": Rate.share(_changed(pairs)),
        "touch": Rate.share(_other(pairs, "first_contact")),
        "outcome": Rate.share(_other(pairs, "outcome_class")),
        "target": Rate.share(pairs.first_contact_correct_y),
    }


def _other(pairs: pd.DataFrame, what: str) -> pd.Series:
    return pairs[f"{what}_x"] != pairs[f"{what}_y"]


def _changed(pairs: pd.DataFrame) -> pd.Series:
    return _other(pairs, "first_contact") | _other(pairs, "outcome_class") | _other(pairs, "end_hash")
