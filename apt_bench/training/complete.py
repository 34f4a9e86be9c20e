"""What a recipe leaves out, made on the spot: demonstrations, a pretrained mini VLM, and a first look at the
policy."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from rich.console import Console

from apt_bench.analysis.stats import wilson
from apt_bench.core.errors import UserError
from apt_bench.core.paths import weights_dir
from apt_bench.core.text import file_name
from apt_bench.demos.collect import collect
from apt_bench.rollout.runner import RunOptions, run
from apt_bench.suites import load_suite
from apt_bench.training.cache import alone, digest
from apt_bench.training.config import Recipe
from apt_bench.training.mini import is_complete, made_by
from apt_bench.training.two_stage import Session, still_there


def completed(recipe: Recipe, session: Session, console: Console) -> Recipe:
    """The recipe with data and VLM filled in. What was made before is found again in the cache."""
    if recipe.vlm.name == "mini" and recipe.collect.suite:
        _announce(recipe, session)
    if not recipe.data.data and recipe.collect.suite:
        recipe = dataclasses.replace(
            recipe, data=dataclasses.replace(recipe.data, data=(str(_demos(recipe, session, console)),))
        )
    if recipe.vlm.name == "mini" and recipe.vlm_weights == "auto":
        recipe = dataclasses.replace(recipe, vlm_weights=str(pretrained(recipe, session)))
    return recipe


def _demos(recipe: Recipe, session: Session, console: Console) -> Path:
    wanted = recipe.collect
    suite = load_suite(wanted.suite)  # whose cells say what is collected, and may be others tomorrow
    cells = [dataclasses.asdict(cell) for cell in suite.cells]
    name = digest(dataclasses.asdict(wanted), suite.version, suite.seed, cells)
    folder = session.cache / "demos" / f"{file_name(suite.name)}-{name}"
    session.report.say(f"Demonstrations of {wanted.suite}, {wanted.episodes} per task, in {folder}")
    with alone(folder, session.report.say):
        found = collect(
            collected(recipe),
            folder,
            console,
            "hdf5",
            recipe.data.cameras,
            wanted.size,
            look_every=wanted.look_every,
        )
    if found.run.stopped == "interrupted":
        session.report.say(
            f"Collecting demonstrations: interrupted. {found.demonstrations} are kept in {folder}; the same command "
            "goes on there."
        )
        raise KeyboardInterrupt
    if found.run.stopped:
        raise UserError(
            f"Collecting demonstrations stopped: {found.run.message or found.run.stopped}. The same command goes on "
            "from here."
        )
    if not found.successes:
        raise UserError(
            f"None of {len(found.run.records)} episodes of {wanted.suite} ended in success, {len(found.run.missing)} "
            f"were lost: there is nothing to train on. Their records are in {found.run.out}."
        )
    if found.run.missing:
        session.report.say(
            f"{len(found.run.missing)} episodes were lost; training goes on with {found.successes} demonstrations."
        )
    return folder


def collected(recipe: Recipe) -> RunOptions:
    """The run whose successes are learned from."""
    wanted = recipe.collect
    return RunOptions(
        suite=wanted.suite,
        policy="oracle",
        policy_args=wanted.policy_args,
        cells=wanted.cells,
        episodes=wanted.episodes,
    )


def looked_at(recipe: Recipe, policy: Path, out: Path) -> RunOptions:
    """The short evaluation at the end."""
    wanted = recipe.evaluate
    return RunOptions(
        suite=wanted.suite,
        policy=POLICY,
        policy_args=(f"weights={json.dumps(str(policy))}", *wanted.policy_args),
        cells=wanted.cells,
        episodes=wanted.episodes,
        execute=wanted.execute,
        out=out / "evaluation",
    )


POLICY = "apt_bench.policies.apt:AptPolicy"
"""What plays a checkpoint."""

COST = {
    "demonstration": 3.0,
    "scene": 0.15,
    "pretraining": 0.03,
    "episode": 5.0,
}
STAGE_COST = {"stage1": (0.006, 0.0017), "stage2": (0.012, 0.0039)}
"""Seconds of one core (AMD EPYC, one thread) as measured with the mini recipe: a demonstration; a scene of
pretraining's pictures, and a look at one in a step; a sample in a step of either stage on cached features, and
each of its noise draws; an evaluated episode."""


def _announce(recipe: Recipe, session: Session) -> None:
    """What is to be done and about how long it takes, before it begins."""
    workers, collect, look = os.cpu_count() or 1, recipe.collect, recipe.evaluate
    tasks = 2  # of every cell of the suites that the mini recipe names
    demos = 0 if recipe.data.data else tasks * len(collect.cells) * collect.episodes
    parts = {"demonstrations": (f"{demos}", demos * COST["demonstration"] / workers)}
    if recipe.vlm_weights == "auto" and not made_by(SHIPPED, recipe.vlm.mini, recipe.pretrain):
        rule = recipe.pretrain.train
        seconds = recipe.pretrain.scenes * COST["scene"] + rule.steps * rule.batch * COST["pretraining"]
        parts["mini VLM"] = (f"{recipe.pretrain.scenes} scenes, {rule.steps} steps", seconds)
    stages = {"stage 1": ("stage1", recipe.stage1)} if recipe.two_stage and not recipe.prior else {}
    for title, (key, rule) in {**stages, "stage 2": ("stage2", recipe.joint)}.items():
        sample, draw = STAGE_COST[key]
        parts[title] = (f"{rule.steps} steps", rule.steps * rule.batch * (sample + rule.draws * draw))
    episodes = tasks * len(look.cells) * look.episodes if look.suite else 0
    parts["evaluation"] = (f"{episodes} episodes", episodes * COST["episode"] / workers)
    session.report.say(
        "What will be done, and its time on an idle machine where nothing is in the cache yet:"
    )
    for title, (what, seconds) in parts.items():
        if seconds:
            session.report.say(f"  {title:<15} {what:<28} {seconds / 60:4.0f} min")


SHIPPED = weights_dir("mini_vlm")
"""The mini VLM of the default configuration, as `apt-bench train --pretrain FOLDER` makes it."""


def pretrained(recipe: Recipe, session: Session) -> Path:
    """A mini VLM of the recipe's size, pretrained as it says: the shipped one, one from the cache, or made now."""
    from apt_bench.training.pretrain import new_mini, pretrain

    config, say = recipe.pretrain, session.report.say
    if made_by(SHIPPED, recipe.vlm.mini, config):
        say(f"Mini VLM: the shipped one, {SHIPPED}")
        return SHIPPED
    folder = (
        session.cache / "mini_vlm" / digest(dataclasses.asdict(recipe.vlm.mini), dataclasses.asdict(config))
    )
    with alone(folder, say):
        if not is_complete(folder, config.train.steps):
            say(
                f"Pretraining a mini VLM: {config.scenes} scenes, {config.train.steps} steps, in {folder}. "
                "Killed, it goes on from its last checkpoint."
            )
            pretrain(new_mini(recipe.vlm.mini), config, folder, session.report, session.cache)
    return folder


def first_look(recipe: Recipe, policy: Path, out: Path, console: Console) -> None:
    """A short evaluation on the cells that the recipe names, with intervals that say how short it is."""
    wanted = recipe.evaluate
    if not wanted.suite:
        return
    console.print(
        f"A short evaluation on {wanted.suite}: {wanted.episodes} episodes per task of {', '.join(wanted.cells)}"
    )
    still_there(out)
    found = run(looked_at(recipe, policy, out), console)
    if found.stopped == "interrupted":
        console.print(
            f"The evaluation was interrupted; {len(found.records)} episodes are kept in {found.out}. The policy is "
            f"complete: {policy}"
        )
        raise KeyboardInterrupt
    records = found.records
    for cell in wanted.cells:
        won = [r.outcome == "success" for r in records if r.key.cell == cell and r.outcome != "error"]
        if won:
            low, high = wilson(sum(won), len(won))
            console.print(
                f"{cell}: {sum(won)}/{len(won)}, 95% interval {100 * low:.0f} to {100 * high:.0f} %"
            )
