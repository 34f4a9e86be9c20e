"""What a training of the mini recipe will do, and roughly how long each part takes."""

from __future__ import annotations

import os

from apt_bench.suites import load_suite
from apt_bench.training.config import SuiteEpisodes, TrainConfig
from apt_bench.training.recipe import Recipe
from apt_bench.training.session import Session
from apt_bench.training.vlm_pretraining.weights import SHIPPED, made_by

COST = {
    "tabletop": {"demonstration": 3.0, "scene": 0.15, "pretraining": 0.03, "episode": 5.0},
    "libero": {"demonstration": 6.0, "scene": 1.0, "pretraining": 0.035, "episode": 15.0},
}


STAGE_COST = {"stage1": (0.006, 0.0017), "stage2": (0.012, 0.0039)}
"""Seconds of one core (AMD EPYC, one thread), measured with the mini recipes.

COST, by `PretrainConfig.source`: a demonstration; rendering a pretraining scene; an observation in a pretraining step;
an evaluated episode. STAGE_COST, with cached features: a sample in a step of either stage, and each of its noise
draws."""


def print_estimate(recipe: Recipe, session: Session) -> None:
    """Print the parts of a training and the estimated time of each."""
    session.report.say("Parts of this training, and their time on an idle machine with an empty cache:")
    for title, (what, seconds) in estimate(recipe).items():
        if seconds:
            session.report.say(f"  {title:<15} {what:<28} {seconds / 60:4.0f} min")


def estimate(recipe: Recipe) -> dict[str, tuple[str, float]]:
    """The parts of a training: what each does, and its estimated seconds on an idle machine with an empty cache."""
    workers, evaluate = os.cpu_count() or 1, recipe.evaluate
    cost = COST[recipe.pretrain.source]
    demos = sum(map(_episodes, recipe.collections))
    parts = {"demonstrations": (f"{demos}", demos * cost["demonstration"] / workers)}
    if (
        recipe.vlm_weights == "auto"
        and not recipe.start
        and not made_by(SHIPPED, recipe.vlm.mini, recipe.pretrain)
    ):
        rule = recipe.pretrain.train
        seconds = recipe.pretrain.scenes * cost["scene"] + rule.steps * rule.batch * cost["pretraining"]
        parts["mini VLM"] = (f"{recipe.pretrain.scenes} scenes, {rule.steps} steps", seconds)
    stages: dict[str, tuple[str, TrainConfig]] = {"stage 2": ("stage2", recipe.joint)}
    if recipe.trains_prior:
        stages = {"stage 1": ("stage1", recipe.stage1), **stages}
    for title, (key, rule) in stages.items():
        sample, draw = STAGE_COST[key]
        parts[title] = (f"{rule.steps} steps", rule.steps * rule.batch * (sample + rule.draws * draw))
    episodes = _episodes(evaluate) if evaluate.suite else 0
    parts["evaluation"] = (f"{episodes} episodes", episodes * cost["episode"] / workers)
    return parts


def _episodes(wanted: SuiteEpisodes) -> int:
    """How many episodes the settings name. Raises UserError for an unknown suite or cell."""
    return len(load_suite(wanted.suite).select(wanted.cells, episodes=wanted.episodes, limit=wanted.limit))
