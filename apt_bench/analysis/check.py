"""`check`: has a run got worse than its baseline by more than a margin? Answers: pass, regressed, inconclusive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats as sps

from apt_bench.analysis import stats
from apt_bench.analysis.compare import by_cell, matched, nothing_shared, require_same_protocol, unfinished
from apt_bench.analysis.run import COVERAGE_GATE, Run, sequential_notes
from apt_bench.core.errors import UserError
from apt_bench.runs.records import policy_settings

Verdict = Literal["pass", "regressed", "inconclusive"]
POWER = 0.80
"""Least power of a check that may pass."""

EXTRA = 0.03
"""A check must be able to find a drop of the margin and so much more."""

MOST = 20_000
"""Pairs of one cell, at most, that the chance to pass is computed for."""

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "regressed": 1, "inconclusive": 3}
"""2 is bad input, 70 an error of apt-bench itself: neither is ever a verdict."""


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
    settings: tuple[str, ...] = ()  # the policies' own settings that differ
    cautions: tuple[
        str, ...
    ] = ()  # of runs that were played under a stopping rule, or of an unfinished baseline

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regressed, 3 inconclusive."""
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
    if not 0 <= coverage <= 1:
        raise UserError(f"The coverage must lie between 0 and 100%, not {100 * coverage:g}.")
    for r in (run, baseline):
        if r.frame.imported.any():
            raise UserError(
                f"{r.label} was imported from an eval_info.json, which does not say which initial states were played, "
                "and check needs matched episodes. Play both with `apt-bench run`, or use `apt-bench compare`."
            )
    require_same_protocol(run, baseline, force)
    pairs = matched(run, baseline)
    drop = _drop(margin)
    share, gaps = _coverage(run, baseline, pairs, coverage)
    cautions = (*unfinished(baseline), *sequential_notes((run, baseline)))
    settings = tuple(policy_settings(run.protocol, baseline.protocol, run.label, baseline.label))
    if not len(pairs):
        nothing = nothing_shared(run, baseline, "in common")
        return Check("inconclusive", None, (), margin, drop, share, (nothing,), settings, cautions)
    parts = [("Overall", pairs)]
    cells = by_cell(pairs)
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
    return Check(verdict, gates[0], tuple(gates[1:]), margin, drop, share, tuple(reasons), settings, cautions)


def _drop(margin: float) -> float:
    """The drop that a check must be able to find; nothing falls by more than 100 points."""
    return min(1.0, margin + EXTRA)


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


def pairs_to_pass(margin: float, discordance: float, chance: float = 0.95) -> int:
    """Fewest pairs (to 3 digits) with which a check of a rerun without change passes with this chance. Raises UserError
    where more than `MOST` are needed."""
    low, high = 1, 64
    while pass_chance(high, margin, discordance) < chance:
        low, high = high, min(2 * high, MOST)
        if low == MOST:
            raise UserError(f"More than {MOST} pairs would be needed. Choose a larger margin.")
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if pass_chance(middle, margin, discordance) >= chance else (middle, high)
    return high


def _passes(pairs: int, margin: float, only_run: np.ndarray, only_baseline: np.ndarray) -> np.ndarray:
    """Whether `check` passes one cell of these counts: as `_gate` and its power say."""
    above = stats.tango_score(-margin, pairs, only_run, only_baseline) > stats.normal_quantile(0.90)
    drop = _drop(margin)
    rarer = np.minimum(only_run, only_baseline)
    low, high = -1, int(rarer.max()) + 1  # power falls with the noise: `low` has enough, `high` has not
    while high - low > 1:
        middle = (low + high) // 2
        enough = stats.paired_power(pairs, drop, min(1.0, 2 * middle / pairs + drop), 0.10) >= POWER
        low, high = (middle, high) if enough else (low, middle)
    return above & (rarer <= low)
