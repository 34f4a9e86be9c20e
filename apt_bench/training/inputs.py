"""Inputs that a recipe does not name: demonstrations are collected, and the mini VLM is pretrained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from apt_bench.core.errors import UserError
from apt_bench.core.text import file_name
from apt_bench.demos.collect import collect
from apt_bench.rollout.runner import RunOptions
from apt_bench.suites import load_suite
from apt_bench.training.cache import alone, digest
from apt_bench.training.config import SuiteEpisodes, stored_fields
from apt_bench.training.recipe import Recipe
from apt_bench.training.session import Session
from apt_bench.training.time_estimate import print_estimate
from apt_bench.training.vlm_pretraining.weights import SHIPPED, is_complete, made_by


def complete_recipe(recipe: Recipe, session: Session, console: Console) -> Recipe:
    """Make the inputs that a recipe lacks, or find them in the cache.

    Args:
        recipe: A recipe.
        session: Where and how it runs.
        console: Where the progress of collecting is shown.

    Returns:
        The recipe with `data.data` and `vlm_weights` filled in.

    Raises:
        UserError: Collecting or pretraining failed.
        KeyboardInterrupt: It was interrupted.
    """
    if recipe.vlm.name == "mini" and recipe.collect.suite:
        print_estimate(recipe, session)
    if recipe.collections:
        folders = [_demonstrations(wanted, recipe, session, console) for wanted in recipe.collections]
        data = dataclasses.replace(recipe.data, data=tuple(map(str, folders)))
        recipe = dataclasses.replace(recipe, data=data)
    if recipe.vlm.name == "mini" and recipe.vlm_weights == "auto" and not recipe.start:
        recipe = dataclasses.replace(recipe, vlm_weights=str(pretrained_mini(recipe, session)))
    return recipe


def _demonstrations(wanted: SuiteEpisodes, recipe: Recipe, session: Session, console: Console) -> Path:
    suite = load_suite(wanted.suite)  # a changed suite gets a new entry
    cells = [dataclasses.asdict(cell) for cell in suite.cells]
    name = digest(stored_fields(wanted), suite.version, suite.seed, cells)
    folder = session.cache / "demos" / f"{file_name(suite.name)}-{name}"
    session.report.say(f"Demonstrations of {wanted.suite}, {wanted.episodes} per task, in {folder}")
    with alone(folder, session.report.say):
        found = collect(
            collect_options(wanted),
            folder,
            console,
            "hdf5",
            recipe.data.cameras,
            wanted.size,
            image_every=wanted.image_every,
        )
    if found.run.stopped == "interrupted":
        session.report.say(
            f"Collecting demonstrations: interrupted. {found.demonstrations} are kept in {folder}. Rerun the same "
            "command to resume."
        )
        raise KeyboardInterrupt
    if found.run.stopped:
        raise UserError(
            f"Collecting demonstrations stopped: {found.run.message or found.run.stopped}. Rerun the same command to "
            "resume."
        )
    if not found.successes:
        raise UserError(
            f"None of {len(found.run.records)} episodes of {wanted.suite} ended in success, {len(found.run.missing)} "
            f"were lost: there is no demonstration to train on. The records are in {found.run.out}."
        )
    if found.run.missing:
        session.report.say(
            f"{len(found.run.missing)} episodes were lost; training uses {found.successes} demonstrations."
        )
    return folder


def collect_options(wanted: SuiteEpisodes) -> RunOptions:
    """Options of the run whose successful episodes become the demonstrations."""
    return RunOptions.of(
        suite=wanted.suite,
        policy="oracle",
        policy_args=wanted.policy_args,
        cells=wanted.cells,
        episodes=wanted.episodes,
        limit=wanted.limit,
    )


def pretrained_mini(recipe: Recipe, session: Session) -> Path:
    """Folder of the mini VLM that a recipe describes: the shipped one, one from the cache, or one pretrained now."""
    from apt_bench.training.vlm_pretraining.loop import new_mini, pretrain

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
                "If it is interrupted, rerun the same command to resume."
            )
            pretrain(new_mini(recipe.vlm.mini, config), config, folder, session.report, session.cache)
    return folder
