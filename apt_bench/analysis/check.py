"""`check`: is a run worse than its baseline by more than a margin? Verdicts: pass, regressed, inconclusive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from apt_bench.analysis import stats
from apt_bench.analysis.cell_summary import COVERAGE_GATE
from apt_bench.analysis.compare import by_cell, matched, nothing_shared, require_same_protocol, unfinished
from apt_bench.analysis.run import Run, sequential_notes
from apt_bench.core.errors import UserError
from apt_bench.runs.protocol import policy_settings

Verdict = Literal["pass", "regressed", "inconclusive"]
POWER = 0.80
"""A check with less power cannot pass."""

EXTRA = 0.03
"""Extra drop beyond the margin that a check must be powered to detect; a fraction."""

MOST = 20_000
"""Most pairs of one cell for which the chance to pass is computed."""

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "regressed": 1, "inconclusive": 3}
"""Exit code of each verdict. 2 (bad input) and 70 (an error in apt-bench) are never verdicts."""


@dataclass(frozen=True)
class Gate:
    """One contrast of a check, overall or of a cell: run minus baseline. Rates are fractions.

    Attributes:
        only_run: Pairs in which only the run succeeded.
        only_baseline: Pairs in which only the baseline succeeded.
        low: One-sided 95% lower limit of the difference (Tango's score interval).
        p: One-sided exact McNemar p-value, Holm-adjusted over all contrasts of the check.
        power: Chance to call a drop of `Check.drop` regressed, given the observed discordance.
    """

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
    power: float


@dataclass(frozen=True)
class Check:
    """The outcome of a check.

    Attributes:
        verdict: pass, regressed or inconclusive.
        overall: The contrast over all pairs; None without any pair.
        cells: The contrasts of the cells, where there are several.
        margin: Largest drop that still passes, a fraction.
        drop: The drop that the check must be powered to detect, a fraction; `Gate.power` is its power.
        coverage: Share of the baseline's episodes that have a matched one.
        reasons: What decided the verdict, one sentence each.
        policy_settings: The policies' own settings that differ.
        cautions: Sentences about stopping rules and an unfinished baseline.
    """

    verdict: Verdict
    overall: Gate | None
    cells: tuple[Gate, ...]
    margin: float
    drop: float
    coverage: float
    reasons: tuple[str, ...]
    policy_settings: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regressed, 3 inconclusive."""
        return EXIT_CODES[self.verdict]


def check(
    run: Run, baseline: Run, margin: float = 0.05, force: bool = False, coverage: float = COVERAGE_GATE
) -> Check:
    """Check whether `run` is worse than `baseline` by more than `margin`.

    A contrast passes if the one-sided 95% lower limit of the paired difference is above -margin. It is regressed if it
    does not pass and the run is significantly worse (one-sided exact McNemar test at 0.05, Holm-adjusted over the
    overall contrast and the cells). Otherwise it is inconclusive: more pairs would decide.

    The run is regressed if any contrast is, passes if the overall contrast passes, and is inconclusive otherwise. It
    cannot pass if its coverage is too small, or if the power to detect a drop of the margin plus `EXTRA` is below
    `POWER`.

    Args:
        run: The run to check.
        baseline: The run that it is compared with.
        margin: Largest drop that still passes, a fraction.
        force: Check although the protocols differ.
        coverage: Least share of finished episodes, both of those requested from the run and of those that the baseline
            has in the same cells.

    Raises:
        UserError: The margin or the coverage is out of range, the protocols differ, or a run was imported.
    """
    if not 0 < margin < 1:
        raise UserError(f"The margin must be between 0 and 100 points, not {100 * margin:g}.")
    if not 0 <= coverage <= 1:
        raise UserError(f"The coverage must be between 0 and 100%, not {100 * coverage:g}.")
    for r in (run, baseline):
        if r.frame.imported.any():
            raise UserError(
                f"{r.label} was imported from an eval_info.json, which does not name the initial states, and check "
                "needs matched episodes. Run both policies with `apt-bench run`, or use `apt-bench compare`."
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
            f"Underpowered: with {gates[0].pairs} pairs, the chance to detect a drop of {100 * drop:g} points is only "
            f"{100 * gates[0].power:.0f}%, and a pass needs {100 * POWER:g}%. More episodes would decide."
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
    """The drop that a check must be powered to detect, at most 100 points."""
    return min(1.0, margin + EXTRA)


def _worse(gate: Gate) -> str:
    return (
        f"{gate.name} fell from {100 * gate.baseline:.1f}% to {100 * gate.rate:.1f}% over {gate.pairs} pairs: "
        f"{gate.only_baseline} episodes lost, {gate.only_run} won, p = {gate.p:.2g}."
    )


def _coverage(run: Run, baseline: Run, pairs: pd.DataFrame, least: float) -> tuple[float, list[str]]:
    """Share of the baseline's finished episodes, in cells that both runs requested, that have a matched episode; and a
    sentence for each share that is below `least`."""
    cells = {k for k in run.requested if k in baseline.requested}
    wanted = baseline.frame[baseline.frame.finished]
    wanted = wanted[[(str(s), str(c)) in cells for s, c in zip(wanted.suite, wanted.cell, strict=True)]]
    share = len(pairs) / len(wanted) if len(wanted) else 0.0
    gaps = []
    if share < least:
        gaps.append(
            f"Only {len(pairs)} of the baseline's {len(wanted)} episodes in these cells have a matched one "
            f"({share:.0%}; at least {least:.0%} are needed)."
        )
    requested, finished = sum(run.requested.values()), int(run.frame.finished.sum())
    if requested and finished < least * requested:
        gaps.append(
            f"Only {finished} of the {requested} requested episodes are finished ({finished / requested:.0%})."
        )
    return share, gaps


def _gate(
    name: str, part: pd.DataFrame, only: tuple[int, int], p: float, margin: float, drop: float, family: int
) -> Gate:
    n, (only_run, only_baseline) = len(part), only
    low = stats.tango(n, only_run, only_baseline, 0.90).low
    verdict: Verdict = "pass" if low > -margin else "regressed" if p <= 0.05 else "inconclusive"
    noise = 2 * min(only) / n  # discordance without a drop
    return Gate(
        name, n, float(part.a.mean()), float(part.b.mean()), (only_run - only_baseline) / n, low, p, only_run,
        only_baseline, verdict, stats.paired_power(n, drop, min(1.0, noise + drop), 2 * 0.05 / family),
    )  # fmt: skip


def pass_chance(pairs: int, margin: float, discordance: float, difference: float = 0.0) -> float:
    """Exact chance that a check of one cell passes.

    Args:
        pairs: Number of matched episodes.
        margin: The check's margin, a fraction.
        discordance: Share of pairs in which only one run succeeds.
        difference: True difference run minus baseline, a fraction; 0 for a rerun without change.
    """
    if not abs(difference) <= discordance <= 1:
        raise ValueError("discordance must be between |difference| and 1")
    up = (1 + difference / discordance) / 2 if discordance else 0.5
    from scipy import stats as sps

    low, high = sps.binom.interval(1 - 1e-9, pairs, discordance) if discordance else (0, 0)
    differing = np.arange(int(low), int(high) + 1)
    d = np.repeat(differing, differing + 1)
    a = np.concatenate([np.arange(n + 1) for n in differing])
    weight = sps.binom.pmf(d, pairs, discordance) * sps.binom.pmf(a, d, up)
    keep = weight > 1e-10
    return float(weight[keep] @ _passes(pairs, margin, a[keep], (d - a)[keep]))


def pairs_to_pass(margin: float, discordance: float, chance: float = 0.95) -> int:
    """Fewest pairs, to 3 digits, with which a check of a rerun without change passes with a given chance.

    Args:
        margin: The check's margin, a fraction.
        discordance: Share of pairs in which only one run succeeds.
        chance: The chance to pass.

    Raises:
        UserError: More than `MOST` pairs are needed.
    """
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
    """Whether `check` passes one cell with these counts: by its lower limit and its power, as in `check`."""
    above = stats.tango_score(-margin, pairs, only_run, only_baseline) > stats.normal_quantile(0.90)
    drop = _drop(margin)
    rarer = np.minimum(only_run, only_baseline)
    low, high = -1, int(rarer.max()) + 1  # power falls with the noise: enough at `low`, too little at `high`
    while high - low > 1:
        middle = (low + high) // 2
        enough = stats.paired_power(pairs, drop, min(1.0, 2 * middle / pairs + drop), 0.10) >= POWER
        low, high = (middle, high) if enough else (low, middle)
    passes: np.ndarray = above & (rarer <= low)
    return passes
