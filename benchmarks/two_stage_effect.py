"""The two-stage effect on the tabletop: train and test the arms of a plan, and print all stored results.

    python benchmarks/two_stage_effect.py --arm E1              # every arm of E1: rates are chosen, then arms are run
    python benchmarks/two_stage_effect.py --arm E1/two --seed 0 # one training and its evaluation
    python benchmarks/two_stage_effect.py --table               # every arm from the stored results
    python benchmarks/two_stage_effect.py --figure effect.png   # the same as a figure

The plan (`two_stage_effect.yaml`) has experiments with arms. An arm is a recipe with changed settings. Its learning
rate is the one of the experiment's `rates` that gives the most right items first on the tuning seeds. Those seeds are
not reported. Every training gives one JSON file in `results/two_stage_effect/EXPERIMENT/`. Rerun the same command to
resume: stored results are not run again, and unfinished trainings and evaluations continue. Training takes one core. On
several cores, start the command once for each core with another --arm or --seed. The table also has the policies that
were trained on LIBERO's base tasks, from `results/reference/base-*`.

The table counts a training as one observation: the mean over trainings, with a t interval. Two arms of one seed have
the same scenes, so their difference is taken scene by scene.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from apt_bench.core.errors import UserError, did_you_mean  # noqa: E402
from apt_bench.core.text import say  # noqa: E402
from apt_bench.envs.tabletop.catalog import CONTAINERS  # noqa: E402
from apt_bench.rollout.runner import RunOptions, run  # noqa: E402
from apt_bench.runs.records import EpisodeRecord  # noqa: E402
from apt_bench.training.cache import default_cache  # noqa: E402
from apt_bench.training.config import LabelConfig  # noqa: E402
from apt_bench.training.inputs import complete_recipe  # noqa: E402
from apt_bench.training.progress import Report  # noqa: E402
from apt_bench.training.recipe import Recipe  # noqa: E402
from apt_bench.training.session import Session  # noqa: E402
from apt_bench.training.two_stage import run_recipe, stage_checkpoint  # noqa: E402
from benchmarks.two_stage_libero import libero_table  # noqa: E402
from benchmarks.two_stage_plan import Job, Plan, load_plan, rates_of, recipe_of, stored  # noqa: E402
from benchmarks.two_stage_tables import figure, interval, rates_table, table, total  # noqa: E402

REFERENCE = HERE.parent / "results" / "reference"
MEASURES = ("success", "right", "lifted", "container", "delivered")


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
    if recipe.two_stage and not recipe.prior and (prior := _shared_prior(plan, job, folder, recipe)):
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
    found["cells"] = outcomes(result.records, recipe.data.labels)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found) + "\n")


def _shared_prior(plan: Plan, job: Job, folder: Path, recipe: Recipe) -> str:
    """The finished prior of another rate of the same arm and seed; "" = none."""
    for rate in plan.experiments[job.experiment].rates:
        other = folder.with_name(dataclasses.replace(job, rate=rate).name)
        last = other / "stage1" / "checkpoints" / f"step_{recipe.stage1.steps:07d}"
        if other != folder and last.is_dir():
            return str(stage_checkpoint(other, 1))
    return ""


def outcomes(
    records: Sequence[EpisodeRecord], labels: LabelConfig | None = None
) -> dict[str, dict[str, list[int | None]]]:
    """1 or 0 per episode, by "cell/task" and measure, in the order of initial states, so that arms can be paired.

    None where the measure does not apply, and for errors. `success`. `right`: the first item that was touched is the
    instructed one. `lifted`: anything was lifted. `container`: of the episodes that put the instructed item into a
    container, whether the first one is the named one. `delivered`: of the episodes that lifted the instructed item,
    whether it ended in the named container. Where only some nouns have labels (`labels`), `right_labelled` and
    `right_unlabelled` are `right` for instructions that name one of them, and for the others.
    """
    out: dict[str, dict[str, list[int | None]]] = {}
    for r in sorted(records, key=lambda r: (r.key.cell, r.key.task, r.key.init)):
        found = _outcome(r)
        if labels and labels.nouns:
            named = labels.names_noun(r.prompt)
            found["right_labelled"] = found["right"] if named else None
            found["right_unlabelled"] = None if named else found["right"]
        measures = out.setdefault(f"{r.key.cell}/{r.key.task}", {})
        for measure, value in found.items():
            measures.setdefault(measure, []).append(None if value is None else int(value))
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


def selected(plan: Plan, name: str) -> list[tuple[str, str]]:
    """The arms that `--arm` names: an experiment, or EXPERIMENT/ARM. Raises UserError where there is none."""
    found = [(e, a) for e, x in plan.experiments.items() for a in x.arms if name in (e, f"{e}/{a}", "")]
    if not found:
        experiment, _, arm = name.partition("/")
        if arm and experiment in plan.experiments:
            known = did_you_mean(arm, plan.experiments[experiment].arms)
            raise UserError(f"Experiment '{experiment}' has no arm '{arm}'. {known}")
        raise UserError(
            f"The plan has no experiment '{experiment}'. {did_you_mean(experiment, plan.experiments)}"
        )
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
        results = options.results
        print(table(plan, results), rates_table(plan, results), libero_table(REFERENCE), sep="\n")
        return
    if options.figure:
        figure(plan, options.results, options.figure)
        return
    for experiment, arm in selected(plan, options.arm):
        for job in jobs_of(plan, experiment, arm, options.seed, options.results):
            do(plan, job, options, Console())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        say(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("Interrupted. Rerun the same command to resume.")
        sys.exit(130)
