"""The two-stage effect on the tabletop: train and test the arms of a plan, and print all stored results.

    python benchmarks/two_stage_effect.py --arm E1              # every arm of E1: rates are chosen, then arms are run
    python benchmarks/two_stage_effect.py --arm E1/two --seed 0 # one training and its evaluation
    python benchmarks/two_stage_effect.py --table               # every arm from the stored results
    python benchmarks/two_stage_effect.py --figure effect.png   # the same as a figure

The plan (`two_stage_effect.yaml`) has experiments with arms. An arm is a recipe with changed settings. Its learning
rate is the one of the experiment's `rates` that gives the most right items first on the tuning seeds. Those seeds are
not reported. Every training gives one JSON file in `results/two_stage_effect/EXPERIMENT/`. Rerun the same command to
resume: stored results are not run again, and unfinished trainings and evaluations continue. Training takes one core. On
several cores, start the command once for each core with another --arm or --seed.

The table counts a training as one observation: the mean over trainings, with a t interval. Two arms of one seed have
the same scenes, so their difference is taken scene by scene.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy import stats

from apt_bench.core.config import build, read_yaml
from apt_bench.core.errors import UserError
from apt_bench.envs.tabletop.catalog import CONTAINERS
from apt_bench.rollout.runner import RunOptions, run
from apt_bench.runs.records import EpisodeRecord
from apt_bench.training.cache import default_cache
from apt_bench.training.config import TrainConfig
from apt_bench.training.inputs import complete_recipe
from apt_bench.training.progress import Report
from apt_bench.training.recipe import Recipe, load_recipe, merged
from apt_bench.training.session import Session
from apt_bench.training.two_stage import run_recipe, stage_checkpoint

HERE = Path(__file__).parent
MEASURES = ("success", "right", "lifted", "container", "delivered")
MUG = "uc/to_mug"
"""The instructions that name the container which is in no demonstration."""


@dataclass(frozen=True)
class Experiment:
    """Arms that are compared with each other.

    Attributes:
        about: One sentence for people.
        set: Settings of all arms, over the plan's.
        arms: Arm -> its settings.
        rates: Name of a rate -> its settings; the best one is chosen for each arm. Empty = the recipe's own rates.
        rates_of: Experiment whose choice applies, by the arm's name; empty = this one.
        seeds: Seeds of the reported trainings.
        cells: Cells of the evaluation.
        episodes: Episodes per task of a cell.
    """

    about: str
    arms: Mapping[str, Mapping[str, Any]]
    set: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rates: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    rates_of: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    cells: tuple[str, ...] = ("so", "uo", "uc")
    episodes: int = 50


@dataclass(frozen=True)
class Plan:
    """All experiments, and what they share.

    Attributes:
        config: The training configuration.
        suite: The suite of the evaluation.
        scenes: Seed of the test scenes of training seed 0; training seed s has scenes + s.
        set: Settings of every arm.
        tuning_seeds: Seeds of the trainings that only choose a rate.
        tuning_cells: Cells of their evaluation.
        tuning_episodes: Episodes per task of theirs.
        gate_right: Smallest share (%) of right items first in `so` that a one-stage policy needs.
        gate_fall: Smallest fall (points) on unseen items or on the unseen container.
        experiments: The experiments by name.
    """

    config: str
    suite: str
    experiments: Mapping[str, Experiment]
    set: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scenes: int = 7
    tuning_seeds: tuple[int, ...] = (100,)
    tuning_cells: tuple[str, ...] = ("so",)
    tuning_episodes: int = 25
    gate_right: float = 85
    gate_fall: float = 15


@dataclass(frozen=True)
class Job:
    """One training and its evaluation."""

    experiment: str
    arm: str
    seed: int
    rate: str = ""

    @property
    def name(self) -> str:
        """Name of its files."""
        parts = [self.arm.replace(" ", "_"), f"seed{self.seed}", *([self.rate] if self.rate else [])]
        return "-".join(parts)


def load_plan(path: Path) -> Plan:
    """Read a plan. Raises UserError for an unknown key or a wrong type."""
    raw = read_yaml(path)
    raw.pop("templates", None)  # YAML anchors
    plan: Plan = build(Plan, raw, str(path))
    return plan


def recipe_of(plan: Plan, job: Job) -> Recipe:
    """The recipe of a training."""
    experiment = plan.experiments[job.experiment]
    source = plan.experiments[experiment.rates_of or job.experiment]
    over: Mapping[str, Any] = {"seed": job.seed}
    rate = source.rates[job.rate] if job.rate else {}
    for more in (plan.set, experiment.set, experiment.arms[job.arm], rate):
        over = merged(over, more)
    return load_recipe(plan.config, over)


def jobs_of(plan: Plan, experiment: str, arm: str, seed: int | None, results: Path) -> Iterable[Job]:
    """The trainings of an arm: those that choose its rate, then the reported ones, as far as `seed` selects them.

    Raises:
        UserError: A reported seed is wanted, and the rate is not chosen yet.
    """
    this = plan.experiments[experiment]
    for tuning in plan.tuning_seeds:
        if seed in (None, tuning):
            yield from (Job(experiment, arm, tuning, rate) for rate in rates_of(plan, experiment, arm))
    for number in this.seeds:
        if seed in (None, number):
            yield Job(experiment, arm, number, best_rate(plan, experiment, arm, results))


def rates_of(plan: Plan, experiment: str, arm: str) -> list[str]:
    """The rates of an experiment that differ for this arm: a one-stage policy has no new blocks."""
    found: list[str] = []
    settings: list[TrainConfig] = []
    for rate in plan.experiments[experiment].rates:
        joint = recipe_of(plan, Job(experiment, arm, 0, rate)).joint
        if joint not in settings:
            settings.append(joint)
            found.append(rate)
    return found


def best_rate(plan: Plan, experiment: str, arm: str, results: Path) -> str:
    """Name of the rate with the most right items first, then the most successes, on the tuning seeds.

    Raises:
        UserError: A result of a tuning seed is missing.
    """
    source = plan.experiments[experiment].rates_of or experiment
    found = {}
    for rate in rates_of(plan, source, arm):
        files = [stored(results, Job(source, arm, seed, rate)) for seed in plan.tuning_seeds]
        missing = [f for f in files if not f.is_file()]
        if missing:
            raise UserError(
                f"The rate of {source}/{arm} is not chosen yet, because {missing[0]} is missing. Run first: python "
                f"benchmarks/two_stage_effect.py --arm '{source}/{arm}' --seed {plan.tuning_seeds[0]}"
            )
        trainings = [json.loads(f.read_text())["cells"] for f in files]
        found[rate] = tuple(
            interval([total(t, plan.tuning_cells, m) for t in trainings])[0] for m in ("right", "success")
        )
    return max(found, key=lambda rate: found[rate]) if found else ""


def stored(results: Path, job: Job) -> Path:
    """The result of a job."""
    return results / job.experiment / f"{job.name}.json"


def do(plan: Plan, job: Job, options: argparse.Namespace, console: Console) -> None:
    """Train, evaluate, and store the result, unless it is stored."""
    target = stored(options.results, job)
    if target.is_file():
        return
    console.rule(f"{job.experiment}: {job.name}")
    folder = options.work / job.experiment / job.name
    session = Session(folder, cache=options.cache, report=Report(console))
    recipe = complete_recipe(recipe_of(plan, job), session, console)
    tuning = job.seed in plan.tuning_seeds
    if recipe.two_stage and not recipe.prior and (prior := _shared_prior(folder, recipe)):
        recipe = dataclasses.replace(recipe, prior=prior)
    began = time.perf_counter()
    policy = run_recipe(recipe, session)
    this = plan.experiments[job.experiment]
    found: dict[str, Any] = {
        "experiment": job.experiment,
        "arm": job.arm,
        "seed": job.seed,
        "rate": job.rate,
        "seconds": round(time.perf_counter() - began),
        "held_out": json.loads((folder / "stage2" / "metrics.jsonl").read_text().splitlines()[-1]).get(
            "held_out"
        ),
    }
    cells, episodes = (plan.tuning_cells, plan.tuning_episodes) if tuning else (this.cells, this.episodes)
    wanted = RunOptions.of(
        suite=plan.suite,
        policy="apt_bench.policies.apt:AptPolicy",
        policy_args=(f"weights={policy}", *recipe.evaluate.policy_args),
        cells=cells,
        episodes=episodes,
        seed=plan.scenes + job.seed,
        execute_horizon=recipe.evaluate.execute,
        workers=options.workers,
        out=folder / "evaluation",
    )
    result = run(wanted, console)
    if result.missing:
        raise UserError(
            f"{job.experiment}/{job.name}: {len(result.missing)} episodes have no result: "
            f"{result.message or result.stopped or 'they were lost'}. Rerun the same command to resume."
        )
    found["cells"] = outcomes(result.records)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found) + "\n")


def _shared_prior(folder: Path, recipe: Recipe) -> str:
    """The finished prior of another rate of the same arm and seed; "" = none."""
    stem = folder.name.rpartition(f"seed{recipe.seed}")[0]
    for other in sorted(folder.parent.glob(f"{stem}seed{recipe.seed}*")):
        last = other / "stage1" / "checkpoints" / f"step_{recipe.stage1.steps:07d}"
        if other != folder and last.is_dir():
            return str(stage_checkpoint(other, 1))
    return ""


def outcomes(records: Sequence[EpisodeRecord]) -> dict[str, dict[str, list[int | None]]]:
    """1 or 0 per episode, by "cell/task" and measure, in the order of initial states, so that arms can be paired.

    None where the measure does not apply, and for errors. `success`. `right`: the first item that was touched is the
    instructed one. `lifted`: anything was lifted. `container`: of the episodes that put the instructed item into a
    container, whether the first one is the named one. `delivered`: of the episodes that lifted the instructed item,
    whether it ended in the named container.
    """
    out: dict[str, dict[str, list[int | None]]] = {}
    for r in sorted(records, key=lambda r: (r.key.cell, r.key.task, r.key.init)):
        measures = out.setdefault(f"{r.key.cell}/{r.key.task}", {m: [] for m in MEASURES})
        for measure, value in _outcome(r).items():
            measures[measure].append(None if value is None else int(value))
    return out


def _outcome(r: EpisodeRecord) -> dict[str, bool | None]:
    if r.outcome == "error":
        return dict.fromkeys(MEASURES)
    won = r.outcome == "success"
    item, *named = r.events["targets"]
    touched = [name for name in r.events["touched"] if name not in CONTAINERS]
    mine = [p for p in r.events["placements"] if p["object"] == item]
    put = [on for p in mine for on in p["on"] if on in CONTAINERS]
    return {
        "success": won,
        "right": touched[:1] == [item],
        "lifted": bool(r.events["lifted"]),
        "container": put[0] in named if put else (True if won else None),
        "delivered": (won or bool(mine and set(mine[-1]["within"]) & set(named)))
        if item in r.events["lifted"]
        else None,
    }


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
    ("success", ("so",), "so: success"), ("success", ("uo",), "uo: success"),
    ("success", ("uc/to_plate",), "to_plate: success"), ("success", (MUG,), "to_mug: success"),
    ("lifted", ("so",), "so: lifted"), ("container", (MUG,), "to_mug: named, of put"),
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
            rows.append([label, str(len(trainings)), *(_text(*f, within=(0, 100)) for f in found)])
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
                    *(_text(*d, form="+.0f", within=(-100, 100)) for d in differences),
                ]
            )
        lines += _markdown(["arm", "trainings", *(title for *_, title in shown)], rows)
        lines.append("")
    return "\n".join(lines)


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
    if not experiment.rates and not experiment.rates_of:
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


def figure(plan: Plan, results: Path, path: Path) -> None:
    """Draw the right items first and the items that the named mug got: a dot per training, a line per arm."""
    import matplotlib.pyplot as plt

    experiments = load_results(plan, results)
    drawing, axes = plt.subplots(2, 1, figsize=(7, 5), sharex=True, sharey=True, layout="constrained")
    titles = "right item first, so", "the mug is named: items that it got, of those put into a container"
    for axis, (names, measure), title in zip(
        axes, ((("so",), "right"), ((MUG,), "container")), titles, strict=True
    ):
        for x, arms in enumerate(experiments.values()):
            for k, (arm, colour) in enumerate(SHOWN.items()):
                found = [total(t["cells"], names, measure) for t in arms.get(arm, {}).values()]
                at = x + 0.22 * (k - 1)
                axis.plot(
                    [at] * len(found),
                    [100 * s / n if n else np.nan for s, n in found],
                    "o",
                    color=colour,
                    alpha=0.5,
                )
                mean = interval(found)[0]
                axis.plot(
                    [at - 0.09, at + 0.09], [mean, mean], color=colour, lw=3, label=arm if x == 0 else None
                )
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("%")
        axis.set_ylim(-3, 103)
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend(ncols=3, fontsize=8, loc="lower left")
    axes[1].set_xticks(range(len(experiments)), experiments, rotation=20, ha="right", fontsize=8)
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def _text(
    mean: float, low: float, high: float, form: str = ".0f", within: tuple[float, float] = (-100, 100)
) -> str:
    if np.isnan(mean):
        return "-"
    if np.isnan(low):
        return format(mean, form)
    return f"{mean:{form}} [{max(low, within[0]):{form}}, {min(high, within[1]):{form}}]"


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def selected(plan: Plan, name: str) -> list[tuple[str, str]]:
    """The arms that `--arm` names: an experiment, or EXPERIMENT/ARM. Raises UserError where there is none."""
    found = [(e, a) for e, x in plan.experiments.items() for a in x.arms if name in (e, f"{e}/{a}", "")]
    if not found:
        known = ", ".join(f"{e}/{a}" for e, x in plan.experiments.items() for a in x.arms)
        raise UserError(f"The plan has no arm '{name}'. Its arms are {known}.")
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Run the selected arms, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", type=Path, default=HERE / "two_stage_effect.yaml")
    parser.add_argument("--arm", default="", help="EXPERIMENT or EXPERIMENT/ARM; default: all of them")
    parser.add_argument("--seed", type=int, help="one seed only, of the reported or the tuning ones")
    parser.add_argument("--table", action="store_true", help="print the stored results and run nothing")
    parser.add_argument(
        "--figure", type=Path, help="draw the stored results into this PNG file and run nothing"
    )
    parser.add_argument("--results", type=Path, default=HERE.parent / "results" / "two_stage_effect")
    parser.add_argument("--work", type=Path, default=Path("results/training/two_stage_effect"))
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--workers", default="0", help="worker processes of an evaluation")
    options = parser.parse_args(words)
    plan = load_plan(options.plan)
    if options.table:
        print(table(plan, options.results))
        return
    if options.figure:
        figure(plan, options.results, options.figure)
        return
    for experiment, arm in selected(plan, options.arm):
        for job in jobs_of(plan, experiment, arm, options.seed, options.results):
            do(plan, job, options, Console())


if __name__ == "__main__":
    main()
