"""Is this policy better, or has it got worse? Two runs, matched episode by episode.

`compare` asks whether two policies differ; `check` asks whether a run has got worse than its baseline by more than a
margin, and has three answers: pass, regressed, inconclusive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats as sps

from apt_bench import stats
from apt_bench.core.errors import UserError
from apt_bench.reporting.data import (
    COVERAGE_GATE,
    KEY,
    Run,
    cell_label,
    cell_summaries,
    protocol_differences,
    sequential_notes,
    suite_order,
)

Better = Literal["A better", "B better", "undecided"]
Verdict = Literal["pass", "regressed", "inconclusive"]
POWER = 0.80
"""Least power of a check that may pass."""

EXTRA = 0.03
"""A check must be able to find a drop of the margin and so much more."""

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "regressed": 1, "inconclusive": 2}


@dataclass(frozen=True)
class Contrast:
    """A against B in one cell or task, or overall. Rates are fractions; `difference` is A - B with its 95% interval.

    Paired: `only_a` and `only_b` count the matched episodes in which only one of them succeeded, `n_a` = `n_b` = pairs.
    """

    name: str
    n_a: int
    n_b: int
    rate_a: float
    rate_b: float
    difference: stats.Estimate
    p: float
    paired: bool
    only_a: int = 0
    only_b: int = 0
    adjusted: float = 1.0  # p after Holm (cells) or Benjamini-Hochberg (tasks)

    @property
    def verdict(self) -> Better:
        """Which is better, at 0.05 after the adjustment."""
        if self.adjusted > 0.05:
            return "undecided"
        return "A better" if self.rate_a > self.rate_b else "B better"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    overall: Contrast
    cells: tuple[Contrast, ...]
    tasks: tuple[Contrast, ...]
    alone_a: int  # finished episodes of A that B has not, and so do not count
    alone_b: int
    knobs: tuple[str, ...]  # protocol settings that differ
    cautions: tuple[str, ...] = ()  # of runs that were played under a stopping rule


def require_same_protocol(a: Run, b: Run, force: bool) -> list[str]:
    """The differing settings. Raises UserError where there are any, unless `force`."""
    knobs = protocol_differences(a, b)
    if knobs and not force:
        shown = "; ".join(knobs[:8]) + (f"; and {len(knobs) - 8} more" if len(knobs) > 8 else "")
        raise UserError(
            f"{a.label} and {b.label} ran under different protocols ({shown}). Run one of them again under the other's "
            "settings, or compare anyway with --force."
        )
    return knobs


def compare(a: Run, b: Run, force: bool = False, seed: int = 0) -> Comparison:
    """A against B: per cell (Holm), per task (Benjamini-Hochberg) and overall.

    Matched by episode key: exact McNemar and Newcombe's paired interval; overall the macro difference over cells and
    tasks with its task-clustered bootstrap interval. Without a single common key (real trials) the same unpaired:
    Fisher and Newcombe per cell, Cochran-Mantel-Haenszel over the cells. Raises UserError where they share no cell.
    """
    knobs = require_same_protocol(a, b, force)
    pairs = matched(a, b)
    if len(pairs) == 0:
        return _unpaired(a, b, knobs)
    groups = pairs.groupby(["suite", "cell"], observed=True)
    cells = [_paired(name, part) for name, part in _by_cell(pairs)]
    by_task = pairs.groupby(["suite", "cell", "task"], observed=True)
    tasks = [_paired(f"{cell_label(str(s), str(c))}: {t}", part) for (s, c, t), part in by_task]
    overall = dataclasses.replace(
        _paired("Overall", pairs),
        difference=stats.macro_difference(
            pairs.a.to_numpy(float), pairs.b.to_numpy(float), by_task.ngroup().to_numpy(),
            groups.ngroup().to_numpy(), seed=seed,
        ),
    )  # fmt: skip
    done_a, done_b = int(a.frame.done.sum()), int(b.frame.done.sum())
    return Comparison(
        dataclasses.replace(overall, adjusted=overall.p),
        _adjusted(cells, stats.holm),
        _adjusted(tasks, stats.benjamini_hochberg),
        done_a - len(pairs),
        done_b - len(pairs),
        tuple(knobs),
        tuple(sequential_notes((a, b))),
    )


def matched(a: Run, b: Run) -> pd.DataFrame:
    """Finished episodes that both runs have: the key, and success as `a` and `b`."""
    sides = [r.frame.loc[r.frame.done, [*KEY, "success"]].astype(dict.fromkeys(_NAMES, str)) for r in (a, b)]
    return sides[0].merge(sides[1], on=KEY).rename(columns={"success_x": "a", "success_y": "b"})


_NAMES = ["suite", "cell", "task", "prompt"]


def _by_cell(pairs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Label and pairs of each cell, in the suite's order."""
    groups = {(str(s), str(c)): part for (s, c), part in pairs.groupby(["suite", "cell"], observed=True)}
    return [(cell_label(*key), groups[key]) for key in sorted(groups, key=suite_order)]


def _paired(name: str, pairs: pd.DataFrame) -> Contrast:
    n = len(pairs)
    both = int((pairs.a & pairs.b).sum())
    only_a, only_b = int((pairs.a & ~pairs.b).sum()), int((~pairs.a & pairs.b).sum())
    interval = stats.newcombe_paired(both, only_a, only_b, n - both - only_a - only_b)
    return Contrast(
        name,
        n,
        n,
        float(pairs.a.mean()),
        float(pairs.b.mean()),
        stats.Estimate((only_a - only_b) / n, *interval),
        stats.mcnemar(only_a, only_b),
        True,
        only_a,
        only_b,
    )


def _adjusted(contrasts: Sequence[Contrast], method: Any) -> tuple[Contrast, ...]:
    adjusted = method([c.p for c in contrasts])
    return tuple(dataclasses.replace(c, adjusted=p) for c, p in zip(contrasts, adjusted, strict=True))


def _unpaired(a: Run, b: Run, knobs: Sequence[str]) -> Comparison:
    sides = [{k: s for k, s in cell_summaries(r).items() if s.done} for r in (a, b)]
    shared = [k for k in sides[0] if k in sides[1]]
    if not shared:
        raise UserError(
            f"{a.label} and {b.label} have no finished episode in a common cell. Nothing to compare."
        )
    counts = [
        (sides[0][k].successes, sides[0][k].done, sides[1][k].successes, sides[1][k].done) for k in shared
    ]
    cells = [_contrast(sides[0][k].label, *c, stats.fisher(*c)) for k, c in zip(shared, counts, strict=True)]
    overall = Contrast(
        "Overall",
        sum(c.n_a for c in cells),
        sum(c.n_b for c in cells),
        float(np.mean([c.rate_a for c in cells])),
        float(np.mean([c.rate_b for c in cells])),
        _mean_difference([c.difference for c in cells]),
        p := stats.cochran_mantel_haenszel(counts),
        False,
        adjusted=p,
    )
    return Comparison(overall, _adjusted(cells, stats.holm), (), 0, 0, tuple(knobs))


def _mean_difference(parts: Sequence[stats.Estimate]) -> stats.Estimate:
    """Mean of independent differences; its distances to the limits add in squares (MOVER, as in Newcombe's method)."""
    value, low, high = np.array(parts).T
    mean, k = float(value.mean()), len(parts)
    return stats.Estimate(
        mean,
        mean - float(np.sqrt(((value - low) ** 2).sum())) / k,
        mean + float(np.sqrt(((high - value) ** 2).sum())) / k,
    )


def _contrast(name: str, k1: int, n1: int, k2: int, n2: int, p: float) -> Contrast:
    difference = stats.Estimate(k1 / n1 - k2 / n2, *stats.newcombe(k1, n1, k2, n2))
    return Contrast(name, n1, n2, k1 / n1, k2 / n2, difference, p, False)


# --- the gate ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """One contrast of a check: run minus baseline. `low`: one-sided 95% lower limit of the difference (Tango's score
    interval); `p`: one-sided exact McNemar, Holm-adjusted over all contrasts of the check."""

    name: str
    pairs: int
    rate: float
    baseline: float
    difference: float
    low: float
    p: float
    only_run: int
    only_baseline: int
    verdict: Verdict
    power: float  # to call a drop of `Check.drop` regressed, given how many episodes differ either way


@dataclass(frozen=True)
class Check:
    """The outcome of a check. `reasons`: what decided, one sentence each."""

    verdict: Verdict
    overall: Gate | None
    cells: tuple[Gate, ...]
    margin: float  # fraction
    drop: float  # fraction; what `Gate.power` is about
    coverage: float  # share of the baseline's episodes that have a matched one
    reasons: tuple[str, ...]
    cautions: tuple[str, ...] = ()  # of runs that were played under a stopping rule

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regressed, 2 inconclusive."""
        return EXIT_CODES[self.verdict]


def check(
    run: Run, baseline: Run, margin: float = 0.05, force: bool = False, coverage: float = COVERAGE_GATE
) -> Check:
    """Has `run` got worse than `baseline` by more than `margin`?

    A contrast passes when the one-sided 95% lower limit of the paired difference lies above -margin. It is regressed
    when it does not pass and the run is significantly worse (one-sided exact McNemar, 0.05 after Holm over the overall
    contrast and the cells). Everything else is inconclusive: there are too few pairs to tell. The run is regressed when
    any contrast is, passes when the overall contrast does, and is inconclusive otherwise. It cannot pass while fewer
    than `coverage` of the episodes that it was asked for, or that the baseline has in the same cells, are finished,
    nor while a drop of the margin and 3 points more would be found with a power below `POWER`.
    """
    if not 0 < margin < 1:
        raise UserError(f"The margin must lie between 0 and 100 points, not {100 * margin:g}.")
    require_same_protocol(run, baseline, force)
    pairs = matched(run, baseline)
    drop = margin + EXTRA
    share, gaps = _coverage(run, baseline, pairs, coverage)
    if not len(pairs):
        return Check(
            "inconclusive", None, (), margin, drop, share, ("No episode of the run has a matched one.",)
        )
    parts = [("Overall", pairs)]
    cells = _by_cell(pairs)
    if len(cells) > 1:
        parts += cells
    counts = [(int((p.a & ~p.b).sum()), int((~p.a & p.b).sum())) for _, p in parts]
    adjusted = stats.holm([stats.mcnemar(a, b, "less") for a, b in counts])
    gates = [
        _gate(name, part, only, p, margin, drop, len(parts))
        for (name, part), only, p in zip(parts, counts, adjusted, strict=True)
    ]
    worse = [g for g in gates if g.verdict == "regressed"]
    reasons = [*gaps]
    verdict: Verdict = gates[0].verdict
    if worse:
        verdict = "regressed"
        reasons += [_worse(g) for g in worse]
    elif gaps:
        verdict = "inconclusive"
    elif verdict == "pass" and gates[0].power < POWER:
        verdict = "inconclusive"
        reasons.append(
            f"Underpowered: over {gates[0].pairs} pairs a drop of {100 * drop:g} points would be seen with a chance of "
            f"{100 * gates[0].power:.0f}% only, and {100 * POWER:g}% are needed to pass. More episodes would decide."
        )
    elif verdict == "inconclusive":
        reasons.append(
            f"A drop of more than {100 * margin:g} points cannot be ruled out: the lower limit of the difference is "
            f"{100 * gates[0].low:+.1f} points with {gates[0].pairs} pairs. More episodes would decide."
        )
    else:
        reasons.append(
            f"The drop is smaller than {100 * margin:g} points (lower limit {100 * gates[0].low:+.1f})."
        )
    cautions = tuple(sequential_notes((run, baseline)))
    return Check(verdict, gates[0], tuple(gates[1:]), margin, drop, share, tuple(reasons), cautions)


def _worse(gate: Gate) -> str:
    return (
        f"{gate.name} fell from {100 * gate.baseline:.1f}% to {100 * gate.rate:.1f}% over {gate.pairs} pairs: "
        f"{gate.only_baseline} episodes lost, {gate.only_run} won, p = {gate.p:.2g}."
    )


def _coverage(run: Run, baseline: Run, pairs: pd.DataFrame, least: float) -> tuple[float, list[str]]:
    """Share of the baseline's finished episodes, in cells that the run was asked for, that have a partner; and what is
    below the gate."""
    cells = {k for k in run.asked if k in baseline.asked}
    wanted = baseline.frame[baseline.frame.done]
    wanted = wanted[[(str(s), str(c)) in cells for s, c in zip(wanted.suite, wanted.cell, strict=True)]]
    share = len(pairs) / len(wanted) if len(wanted) else 0.0
    gaps = []
    if share < least:
        gaps.append(
            f"Only {len(pairs)} of the baseline's {len(wanted)} episodes in these cells have a matched one "
            f"({share:.0%}, at least {least:.0%} are needed)."
        )
    asked, done = sum(run.asked.values()), int(run.frame.done.sum())
    if asked and done < least * asked:
        gaps.append(f"Only {done} of the {asked} episodes asked for are finished ({done / asked:.0%}).")
    return share, gaps


def _gate(
    name: str, part: pd.DataFrame, only: tuple[int, int], p: float, margin: float, drop: float, family: int
) -> Gate:
    n, (only_run, only_baseline) = len(part), only
    low = stats.tango(n, only_run, only_baseline, 0.90).low
    verdict: Verdict = "pass" if low > -margin else "regressed" if p <= 0.05 else "inconclusive"
    noise = 2 * min(only) / n  # what differs without a drop
    return Gate(
        name, n, float(part.a.mean()), float(part.b.mean()), (only_run - only_baseline) / n, low, p, only_run,
        only_baseline, verdict, stats.paired_power(n, drop, min(1.0, noise + drop), 2 * 0.05 / family),
    )  # fmt: skip


def pass_chance(pairs: int, margin: float, discordance: float, difference: float = 0.0) -> float:
    """Exact chance that a check of one cell with so many pairs passes, where a share `discordance` of them differs
    either way and the run is truly better by `difference` (0: a rerun without change; fractions)."""
    if not abs(difference) <= discordance <= 1:
        raise ValueError("discordance must lie between |difference| and 1")
    up = (1 + difference / discordance) / 2 if discordance else 0.5
    low, high = sps.binom.interval(1 - 1e-9, pairs, discordance) if discordance else (0, 0)
    differing = np.arange(int(low), int(high) + 1)
    d = np.repeat(differing, differing + 1)
    a = np.concatenate([np.arange(n + 1) for n in differing])
    weight = sps.binom.pmf(d, pairs, discordance) * sps.binom.pmf(a, d, up)
    keep = weight > 1e-10
    return float(weight[keep] @ _passes(pairs, margin, a[keep], (d - a)[keep]))


def pairs_to_pass(margin: float, discordance: float, chance: float = 0.95, most: int = 20_000) -> int:
    """Fewest pairs (to 3 digits) with which a check of a rerun without change passes with this chance. Raises UserError
    where more than `most` are needed."""
    low, high = 1, 64
    while pass_chance(high, margin, discordance) < chance:
        low, high = high, 2 * high
        if low > most:
            raise UserError(f"More than {most} pairs would be needed. Choose a larger margin.")
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if pass_chance(middle, margin, discordance) >= chance else (middle, high)
    return high


def _passes(pairs: int, margin: float, only_run: np.ndarray, only_baseline: np.ndarray) -> np.ndarray:
    """Whether `check` passes one cell of these counts: as `_gate` and its power say."""
    above = stats.tango_score(-margin, pairs, only_run, only_baseline) > stats.normal_quantile(0.90)
    drop = margin + EXTRA
    rarer = np.minimum(only_run, only_baseline)
    low, high = -1, int(rarer.max()) + 1  # power falls with the noise: `low` has enough, `high` has not
    while high - low > 1:
        middle = (low + high) // 2
        enough = stats.paired_power(pairs, drop, min(1.0, 2 * middle / pairs + drop), 0.10) >= POWER
        low, high = (middle, high) if enough else (low, middle)
    return above & (rarer <= low)
