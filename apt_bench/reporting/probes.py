"""Language probes: what changes when only the sentence changes."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from apt_bench import stats
from apt_bench.probes import PROBES
from apt_bench.reporting.data import Run, cell_label, suite_order
from apt_bench.reporting.details import CELL, RUN, pvalue
from apt_bench.reporting.table import Column, Rate, Row, Table, Value

_PAIR = ["suite", "cell", "task", "init", "seed"]
_SAME = ("success", "klass", "first", "end_hash", "start_hash", "told", "done")


def probe_table(runs: Sequence[Run]) -> Table | None:
    """Each probe against the cell's own prompt on the same initial states; None where no run was probed."""
    rows = []
    for run in runs:
        for (suite, cell, probe), pairs in _pairs(run).items():
            values: dict[str, Value] = {"run": run.label, "cell": cell_label(suite, cell), "probe": probe}
            rows.append(Row({**values, **_values(pairs)}))
    if not rows:
        return None
    right = {
        "pairs": "Pairs", "own": "Own prompt", "probed": "Probe", "difference": "Difference", "p": "p",
        "sensitivity": "Sensitivity", "touch": "Other first touch", "outcome": "Other outcome",
        "target": "First touch on scored objects",
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
    )
    return Table("probes", "Language probes", columns, rows, notes)


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
    """As `apt_bench.probes` has them: those that change the meaning first."""
    names = [*PROBES]
    return (names.index(probe) if probe in names else len(names)), probe


def _values(pairs: pd.DataFrame) -> dict[str, Value]:
    own, probed, n = pairs.success_x, pairs.success_y, len(pairs)
    up, down, both = int((probed & ~own).sum()), int((own & ~probed).sum()), int((own & probed).sum())
    touch = pairs.first_x != pairs.first_y
    outcome = pairs.klass_x != pairs.klass_y
    path = pairs.end_hash_x != pairs.end_hash_y
    told = pairs.told_y.dropna().astype(bool)
    return {
        "pairs": n,
        "own": _share(own),
        "probed": _share(probed),
        "difference": Rate(
            (up - down) / n, *stats.newcombe_paired(both, up, down, n - both - up - down), signed=True
        ),
        "p": pvalue(stats.mcnemar(up, down)),
        "sensitivity": _share(touch | outcome | path),
        "touch": _share(touch),
        "outcome": _share(outcome),
        "target": _share(told) if len(told) else None,
    }


def _share(flags: pd.Series) -> Rate:
    k, n = int(flags.sum()), len(flags)
    return Rate(k / n, *stats.wilson(k, n), k=k, n=n)
