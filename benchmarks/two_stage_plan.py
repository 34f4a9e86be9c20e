"""The plan of the two-stage experiment (`two_stage_effect.yaml`): experiments, arms and trainings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt_bench.core.config import build, read_yaml
from apt_bench.training.config import TrainConfig
from apt_bench.training.recipe import Recipe, load_recipe, merged


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

    @property
    def tuned(self) -> bool:
        """Whether its arms have chosen rates."""
        return bool(self.rates or self.rates_of)


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


def stored(results: Path, job: Job) -> Path:
    """The result of a job."""
    return results / job.experiment / f"{job.name}.json"
