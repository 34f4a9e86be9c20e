"""Language probes: what changes when only the sentence changes."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from apt_bench.analysis import stats
from apt_bench.analysis.contrasts import paired_contrast
from apt_bench.analysis.run import Run, cell_label, suite_order
from apt_bench.reporting.details import CELL, RUN, pvalue
from apt_bench.reporting.table import Column, Rate, Row, Table, Value, percent
from apt_bench.suites.probes import PROBES, REPEAT

_PAIR = ["suite", "cell", "task", "init", "seed"]
_SAME = ("prompt_text", "success", "klass", "first", "end_hash", "start_hash", "told", "done")


def probe_table(runs: Sequence[Run]) -> Table | None:
    """Each probe against the cell's own prompt on the same initial states, and beside it the noise floor: what a repeat
    under the same sentence changes. None where no run was probed."""
    rows, floors = [], []
    for run in runs:
        found = _pairs(run)
        if found:
            floors.append(_floor_in_words(run, [p for (*_, probe), p in found.items() if probe == REPEAT]))
        for (suite, cell, probe), pairs in found.items():
            values: dict[str, Value] = {"run": run.label, "cell": cell_label(suite, cell), "probe": probe}
            values |= _values(pairs)
            if probe != REPEAT:
                again = found.get((suite, cell, REPEAT))
                values["floor"] = "not measured" if again is None else _share(_changed(again))
            rows.append(Row(values))
    if not rows:
        return None
    right = {
        "pairs": "Pairs", "own": "Own prompt", "probed": "Probe", "difference": "Difference", "p": "p",
        "sensitivity": "Sensitivity", "floor": "Noise floor", "touch": "Other first touch",
        "outcome": "Other outcome", "target": "First touch on scored objects",
    }  # fmt: skip
    columns = [
        RUN,
        CELL,
        Column("probe", "Probe", align="left"),
        *(Column(k, w, align="right") for k, w in right.items()),
    ]
    notes = (
        "In %, with 95% intervals, paired by initial state. Sensitivity: share of episodes in which the first thing "
        "touched, the outcome or the final state differs. null, swapped and stale change the meaning: a policy that "
        "reads its instruction changes what it does. paraphrase and punctuation do not: it should change nothing but "
        "the path. Success under every probe is success at the cell's own task.",
        "Noise floor: the sensitivity of repeat, the same episode once more under the same sentence.",
        *floors,
    )
    return Table("probes", "Language probes", columns, rows, notes)


def _floor_in_words(run: Run, repeats: Sequence[pd.DataFrame]) -> str:
    if not repeats and any(probe == REPEAT for *_, probe in run.asked_probes):
        return f"{run.label}: the noise floor was not measured yet, no repeat has a score. The same command goes on."
    if not repeats:
        return (
            f"{run.label}: the noise floor was not measured, so that a policy with noise of its own looks as if it "
            "read its instruction. The same command with --probe repeat measures it."
        )
    changed = pd.concat([_changed(pairs) for pairs in repeats])
    return (
        f"{run.label}: a repeat under the same sentence changed the first thing touched, the outcome or the final "
        f"state in {percent(changed.mean())}% of {len(changed)} episodes; read the probes against that."
    )


def _pairs(run: Run) -> dict[tuple[str, str, str], pd.DataFrame]:
    """By (suite, cell, probe): finished episodes of one initial state under the own prompt (`_x`) and the probe."""
    sides = [f.loc[f.done, [*_PAIR, *_SAME, "prompt"]].copy() for f in (run.frame, run.probed)]
    for side in sides:
        for name in ("suite", "cell", "task", "klass", "first", "prompt"):
            side[name] = side[name].astype(object).fillna("")
    sides[1] = sides[1].rename(columns={"prompt": "probe"})
    both = sides[0].merge(sides[1], on=_PAIR)
    both = both[both.start_hash_x == both.start_hash_y]  # another start would be another episode
    groups = both.groupby(["suite", "cell", "probe"])
    return {
        k: groups.get_group(k)
        for k in sorted(groups.groups, key=lambda k: (suite_order(k[:2]), _order(k[2])))
    }


def _order(probe: str) -> tuple[int, str]:
    """The repeat, then as `apt_bench.suites.probes` has them: those that change the meaning first."""
    names = [REPEAT, *(name for name in PROBES if name != REPEAT)]
    return (names.index(probe) if probe in names else len(names)), probe


def _values(pairs: pd.DataFrame) -> dict[str, Value]:
    own, probed, n = pairs.success_x, pairs.success_y, len(pairs)
    change = paired_contrast("", pairs.assign(a=probed, b=own, prompt_text=pairs.prompt_text_x))
    touch, outcome = _other(pairs, "first"), _other(pairs, "klass")
    told = pairs.told_y.dropna().astype(bool)
    return {
        "pairs": n,
        "own": _share(own),
        "probed": _share(probed),
        "difference": Rate.of(change.difference, signed=True),
        "p": pvalue(change.p),
        "sensitivity": _share(_changed(pairs)),
        "touch": _share(touch),
        "outcome": _share(outcome),
        "target": _share(told) if len(told) else None,
    }


def _other(pairs: pd.DataFrame, what: str) -> pd.Series:
    return pairs[f"{what}_x"] != pairs[f"{what}_y"]


def _changed(pairs: pd.DataFrame) -> pd.Series:
    return _other(pairs, "first") | _other(pairs, "klass") | _other(pairs, "end_hash")


def _share(flags: pd.Series) -> Rate:
    k, n = int(flags.sum()), len(flags)
    return Rate(k / n, *stats.wilson(k, n), k=k, n=n)
