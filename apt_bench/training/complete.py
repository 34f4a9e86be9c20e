"""What a recipe leaves out, made on the spot: demonstrations, a pretrained mini VLM, and a first look at the
policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from apt_bench.demos.collect import collect
from apt_bench.errors import UserError
from apt_bench.rollout.runner import RunOptions, run
from apt_bench.stats import wilson
from apt_bench.training.config import Recipe
from apt_bench.training.frames import digest
from apt_bench.training.stages import Session


def completed(recipe: Recipe, session: Session, console: Console) -> Recipe:
    """The recipe with data and VLM filled in. What was made before is found again in the cache."""
    if not recipe.data.data and recipe.collect.suite:
        recipe = dataclasses.replace(
            recipe, data=dataclasses.replace(recipe.data, data=(str(_demos(recipe, session, console)),))
        )
    if recipe.vlm.name == "mini" and recipe.vlm_weights == "auto":
        recipe = dataclasses.replace(recipe, vlm_weights=str(pretrained(recipe, session)))
    return recipe


def _demos(recipe: Recipe, session: Session, console: Console) -> Path:
    wanted = recipe.collect
    folder = session.cache / "demos" / f"{wanted.suite}-{digest(dataclasses.asdict(wanted))}"
    session.report.say(f"Demonstrations of {wanted.suite}, {wanted.episodes} per task, in {folder}")
    options = RunOptions(suite=wanted.suite, policy="oracle", cells=wanted.cells, episodes=wanted.episodes)
    found = collect(options, folder, console, "hdf5", recipe.data.cameras, wanted.size)
    if found.run.stopped or not found.demonstrations:
        raise UserError(
            f"Collecting demonstrations stopped: {found.run.message}. The same command goes on from here."
        )
    return folder


SHIPPED = Path(__file__).parent / "weights" / "mini_vlm"
"""The mini VLM of the default configuration, as `apt-bench train --pretrain FOLDER` makes it."""


def pretrained(recipe: Recipe, session: Session) -> Path:
    """A mini VLM of the recipe's size, pretrained as it says: the shipped one, one from the cache, or made now."""
    from apt_bench.training.mini import is_complete, made_by
    from apt_bench.training.pretrain import new_mini, pretrain

    config, say = recipe.pretrain, session.report.say
    if made_by(SHIPPED, recipe.vlm.mini, config):
        say(f"Mini VLM: the shipped one, {SHIPPED}")
        return SHIPPED
    folder = (
        session.cache / "mini_vlm" / digest(dataclasses.asdict(recipe.vlm.mini), dataclasses.asdict(config))
    )
    if not is_complete(folder, config.train.steps):
        say(
            f"Pretraining a mini VLM: {config.scenes} scenes, {config.train.steps} steps, in {folder}. "
            "It took 25 minutes of one idle core."
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
    options = RunOptions(
        suite=wanted.suite,
        policy="apt_bench.policies.apt:AptPolicy",
        policy_args=(f"weights={policy}", f"cameras=[{', '.join(recipe.data.cameras)}]"),
        cells=wanted.cells,
        episodes=wanted.episodes,
        out=out / "evaluation",
    )
    records = run(options, console).records
    for cell in wanted.cells:
        won = [r.outcome == "success" for r in records if r.key.cell == cell and r.outcome != "error"]
        if won:
            low, high = wilson(sum(won), len(won))
            console.print(
                f"{cell}: {sum(won)}/{len(won)}, 95% interval {100 * low:.0f} to {100 * high:.0f} %"
            )
