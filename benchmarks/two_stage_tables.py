"""The table and the figure of the two-stage experiment, with trainings as the unit of the statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.two_stage_plan import Experiment, Job, Plan, stored

MUG = "uc/to_mug"
"""The instructions that name the container which is in no demonstration."""

Cells = Mapping[str, Mapping[str, Sequence[int | None]]]


def values(cells: Cells, names: Sequence[str], measure: str) -> list[int | None]:
    """The values of all tasks of these cells ("so"), or of single tasks ("uc/to_mug")."""
    chosen = [m for task, m in sorted(cells.items()) if task in names or task.partition("/")[0] in names]
    return [value for measures in chosen for value in measures.get(measure, ())]


Sum = tuple[float, int]
"""Sum and number of the values of one training."""


def total(cells: Cells, names: Sequence[str], measure: str) -> Sum:
    """Over the known values."""
    known = [v for v in values(cells, names, measure) if v is not None]
    return float(sum(known)), len(known)


def difference(a: Cells, b: Cells, names: Sequence[str], measure: str) -> Sum:
    """Of a - b, over the scenes in which both values are known."""
    pairs = zip(values(a, names, measure), values(b, names, measure), strict=True)
    known = [x - y for x, y in pairs if x is not None and y is not None]
    return float(sum(known)), len(known)


def interval(trainings: Sequence[Sum]) -> tuple[float, float, float]:
    """Sum / number over all trainings, in %, and its 95 % interval, in which a training is one observation.

    It is the t interval of the mean over trainings where all have equally many values, and that of a ratio of two sums
    otherwise. Without any value all three are nan; with a single training the bounds are.
    """
    sums, numbers = np.array([t for t in trainings if t[1]]).reshape(-1, 2).T
    if not len(sums):
        return (float("nan"),) * 3
    ratio, n = sums.sum() / numbers.sum(), len(sums)
    if n < 2:
        return 100 * ratio, float("nan"), float("nan")
    spread = np.sqrt(n / (n - 1) * ((sums - ratio * numbers) ** 2).sum()) / numbers.sum()
    half = stats.t.ppf(0.975, n - 1) * spread
    return 100 * ratio, 100 * float(ratio - half), 100 * float(ratio + half)


COLUMNS = [
    ("right", ("so",), "so: right item first"), ("right", ("uo",), "uo: right item first"),
    ("right_labelled", ("so",), "so, labelled nouns: right item first"),
    ("right_unlabelled", ("so",), "so, other nouns: right item first"),
    ("success", ("so",), "so: success"), ("success", ("uo",), "uo: success"),
    ("success", ("uc/to_plate",), "to_plate: success"), ("success", (MUG,), "to_mug: success"),
    ("lifted", ("so",), "so: lifted"), ("delivered", ("so",), "so: named, of lifted"),
    ("container", (MUG,), "to_mug: named, of put"),
    ("delivered", (MUG,), "to_mug: named, of lifted"),
]  # fmt: skip

Trainings = Mapping[int, Mapping[str, Any]]
"""Seed -> stored result."""


def load_results(plan: Plan, results: Path) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """The reported results: experiment -> arm -> seed -> result, in the order of the plan."""
    out: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for name, experiment in plan.experiments.items():
        for arm in experiment.arms:
            for seed in experiment.seeds:
                for path in sorted((results / name).glob(f"{Job(name, arm, seed).name}*.json")):
                    found = json.loads(path.read_text())
                    if (found["arm"], found["seed"]) == (arm, seed):
                        out.setdefault(name, {}).setdefault(arm, {})[seed] = found
    return out


def table(plan: Plan, results: Path) -> str:
    """All reported results in Markdown."""
    lines: list[str] = []
    for name, arms in load_results(plan, results).items():
        experiment = plan.experiments[name]
        lines += [f"### {name}: {experiment.about}", "", gate(plan, name, arms), ""]
        shown = [
            c
            for c in COLUMNS
            if any(total(t["cells"], c[1], c[0])[1] for a in arms.values() for t in a.values())
        ]
        rows = []
        for arm, trainings in arms.items():
            found = [interval([total(t["cells"], n, m) for t in trainings.values()]) for m, n, _ in shown]
            rates = ", ".join(sorted({t["rate"] for t in trainings.values()} - {""}))
            label = f"{arm} ({rates})" if rates else arm
            rows.append([label, str(len(trainings)), *(text(*f, within=(0, 100)) for f in found)])
        for a, b in pairs_of(experiment, arms):
            seeds = [s for s in arms[a] if s in arms[b]]
            differences = [
                interval([difference(arms[a][s]["cells"], arms[b][s]["cells"], n, m) for s in seeds])
                for m, n, _ in shown
            ]
            rows.append(
                [
                    f"{a} - {b}",
                    str(len(seeds)),
                    *(text(*d, form="+.0f", within=(-100, 100)) for d in differences),
                ]
            )
        lines += markdown(["arm", "trainings", *(title for *_, title in shown)], rows)
        lines.append("")
    return "\n".join(lines)


def rates_table(plan: Plan, results: Path) -> str:
    """The trainings that choose the rates, in Markdown: right items first, in brackets successes, and the episodes."""
    lines: list[str] = []
    for name, experiment in plan.experiments.items():
        rows = []
        for arm in experiment.arms:
            found = [
                [stored(results, Job(name, arm, seed, rate)) for seed in plan.tuning_seeds]
                for rate in experiment.rates
            ]
            row = [_tuned(plan, [p for p in paths if p.is_file()]) for paths in found]
            if any(row):
                rows.append([arm, *row])
        if rows:
            lines += [f"### {name}: choice of the rates", "", *markdown(["arm", *experiment.rates], rows), ""]
    return "\n".join(lines)


def _tuned(plan: Plan, paths: Sequence[Path]) -> str:
    trainings = [json.loads(p.read_text())["cells"] for p in paths]
    (right, n), (success, _) = (
        np.sum([total(t, plan.tuning_cells, measure) for t in trainings] or [(0, 0)], axis=0)
        for measure in ("right", "success")
    )
    return f"{right:.0f} ({success:.0f}) of {n:.0f}" if n else ""


def pairs_of(experiment: Experiment, arms: Mapping[str, Trainings]) -> list[tuple[str, str]]:
    """Each two-stage arm and each one-stage arm that differs from it in the stages only."""

    def rest(arm: str) -> dict[str, Any]:
        return {
            k: v
            for k, v in experiment.arms[arm].items()
            if k not in ("two_stage", "ki", "budget", "new_blocks", "data")
        }

    two = [a for a in arms if experiment.arms[a].get("two_stage")]
    one = [a for a in arms if not experiment.arms[a].get("two_stage")]
    return [(a, b) for a in two for b in one if rest(a) == rest(b) and set(arms[a]) & set(arms[b])]


def gate(plan: Plan, name: str, arms: Mapping[str, Trainings]) -> str:
    """Whether an experiment tests the claim: the sentence above its table."""
    experiment = plan.experiments[name]
    if not experiment.tuned:
        return "Gate: not passed. Rates were not tuned."
    passed = []
    for arm in (a for a in arms if not experiment.arms[a].get("two_stage")):
        trainings = [t["cells"] for t in arms[arm].values()]
        right, unseen, named, mug = (
            interval([total(t, (names,), measure) for t in trainings])[0]
            for names, measure in (("so", "right"), ("uo", "right"), ("so", "delivered"), (MUG, "delivered"))
        )
        falls = {"uo": right - unseen, "to_mug": named - mug}
        if right >= plan.gate_right and any(fall >= plan.gate_fall for fall in falls.values()):
            known = ", ".join(f"{fall:.0f} on {name}" for name, fall in falls.items() if not np.isnan(fall))
            passed.append(f"{arm} ({right:.0f} % in so; falls by {known})")
    return f"Gate: passed by {', '.join(passed)}." if passed else "Gate: not passed."


SHOWN = {"one": "tab:blue", "one total": "tab:cyan", "two": "tab:orange"}
"""Arms of the figure -> their colours."""


PANELS = [
    (("so",), "right", "so: right item first"),
    (("so",), "delivered", "so: in the named container, of lifted"),
    ((MUG,), "delivered", "mug named: in the mug, of lifted"),
    ((MUG,), "container", "mug named: in the mug, of put"),
]
"""Cells, measure and title of the figure's panels."""


def figure(plan: Plan, results: Path, path: Path) -> None:
    """Draw the `PANELS` of the experiments at chosen rates: a dot per training, a line for the mean of an arm."""
    import matplotlib.pyplot as plt

    experiments = {
        name: arms for name, arms in load_results(plan, results).items() if plan.experiments[name].tuned
    }
    drawing, axes = plt.subplots(2, 2, figsize=(8, 5), sharex=True, sharey=True, layout="constrained")
    for axis, (names, measure, title) in zip(axes.flat, PANELS, strict=True):
        for x, arms in enumerate(experiments.values()):
            for k, (arm, colour) in enumerate(SHOWN.items()):
                found = [total(t["cells"], names, measure) for t in arms.get(arm, {}).values()]
                at = x + 0.22 * (k - 1)
                shares = [100 * s / n if n else np.nan for s, n in found]
                axis.plot([at] * len(found), shares, "o", color=colour, alpha=0.5)
                mean = interval(found)[0]
                axis.plot(
                    [at - 0.09, at + 0.09], [mean, mean], color=colour, lw=3, label=arm if x == 0 else None
                )
        axis.set_title(title, fontsize=10)
        axis.set_ylim(-3, 103)
        axis.grid(axis="y", alpha=0.3)
        axis.set_xticks(range(len(experiments)), experiments)
        axis.set_xlim(-0.5, len(experiments) - 0.5)
    for axis in axes[:, 0]:
        axis.set_ylabel("%")
    axes[0, 0].legend(ncols=3, fontsize=8, loc="lower left")
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def text(
    mean: float, low: float, high: float, form: str = ".0f", within: tuple[float, float] = (-100, 100)
) -> str:
    """A mean with its interval, cut to `within`; "-" where there is none."""
    if np.isnan(mean):
        return "-"
    if np.isnan(low):
        return format(mean, form)
    return f"{mean:{form}} [{max(low, within[0]):{form}}, {min(high, within[1]):{form}}]"


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
