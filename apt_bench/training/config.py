"""A training run as one readable value: shipped YAML files, a person's own, and the command line all fill the
same fields."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from apt_bench.core.config import Count, Natural, Range, build, check_fields, read_yaml
from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.models.config import ExpertConfig, VLMShape
from apt_bench.models.vla import VLMSpec
from apt_bench.models.vlm import VLMMode
from apt_bench.training.episodes import DataConfig
from apt_bench.training.trainer import TrainConfig

CONFIGS = Path(__file__).parent / "configs"
LANGFORCE = {"arch": "groot", "two_stage": False, "vlm_mode": "full", "vlm": {"queries": 64}}
"""What `recipe: langforce` means where nothing else is said."""


LOOKS = 2
"""At a scene of pretraining: the suites' start, and a random pose of arm and camera, as it may be on the way."""


@dataclass(frozen=True)
class PretrainConfig:
    """Of the mini VLM. scenes: four pictures each; the last `held_out` of them are for the probe. sentences:
    per picture and step.
    """

    scenes: Annotated[int, Range(least=2, most=10**6)] = 14_000
    held_out: Count = 200
    sentences: Annotated[int, Range(least=1, most=1000)] = 8
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_fields(self, "pretrain")
        looks = LOOKS * (self.scenes - self.held_out)
        if looks < self.train.batch:
            raise UserError(
                f"pretrain: {self.scenes} scenes less {self.held_out} held out give {max(0, looks)} looks, fewer than "
                f"a batch of {self.train.batch}. Give more scenes, or a smaller pretrain.train.batch."
            )


@dataclass(frozen=True)
class Episodes:
    """Cells of a suite with so many episodes per task. size: pixels of collected images. look_every: control steps
    from one of them to the next. policy_args: NAME=VALUE of the expert, or of the policy. execute: control steps per
    decision, None = the policy's own choice."""

    suite: str = ""
    cells: tuple[str, ...] = ()
    episodes: Count = 1
    size: Annotated[int, Range(least=8, most=4096)] = 128
    look_every: Count = 1
    policy_args: tuple[str, ...] = ()
    execute: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self, "Episodes")


@dataclass(frozen=True)
class Recipe:
    """Which network is trained, in which stages, on what.

    recipe: `plain`, or `langforce` (models/langforce.py), which trains the VLM and a GR00T-style expert in one stage.
    ki: action gradients do not reach the VLM, which here has no other loss: the same as vlm_mode frozen, and
    said so in the tables. vlm_mode: how Stage 2 treats the VLM; Stage 1 freezes it always. inherit: what
    Stage 2 takes over from the prior, `blocks` = what the released loader does. new_blocks: how Stage 2's new blocks
    begin, `random` = as released, `identity` = the policy begins as the prior. budget: a one-stage control
    trains as many steps as Stage 2 (`joint`) or as both stages together (`total`). prior: a Stage-1
    checkpoint to start from instead of training one. vlm_weights: folder of a pretrained mini VLM, or `auto`:
    as `pretrain` says, from the cache or now. collect: where demonstrations come from if none are given.
    evaluate: the short look at the end. expert: sizes of `ExpertConfig`, and under an architecture's name its
    own.
    """

    about: str = ""
    recipe: Literal["plain", "langforce"] = "plain"
    arch: Literal["apt", "pi", "groot"] = "apt"
    two_stage: bool = True
    ki: bool = False
    vlm_mode: VLMMode = "frozen"
    inherit: Literal["all", "blocks"] = "all"
    new_blocks: Literal["random", "identity"] = "random"
    budget: Literal["joint", "total"] = "joint"
    prior: str = ""
    seed: Natural = 0
    vlm: VLMSpec = field(default_factory=VLMSpec)
    vlm_weights: str = ""
    expert: Mapping[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    stage1: TrainConfig = field(default_factory=TrainConfig)
    stage2: TrainConfig = field(default_factory=TrainConfig)
    cache_features: bool = True
    collect: Episodes = field(default_factory=Episodes)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    evaluate: Episodes = field(default_factory=Episodes)

    def __post_init__(self) -> None:
        check_fields(self, "Recipe")
        if self.ki and self.vlm_mode != "frozen":
            raise UserError(
                f"--ki keeps action gradients out of the VLM, --vlm-mode {self.vlm_mode} lets them in. Choose one."
            )
        if self.recipe == "langforce" and (
            self.arch != "groot" or self.two_stage or self.vlm_mode == "frozen"
        ):
            raise UserError(
                "LangForce trains the VLM (--vlm-mode full or lora) and a GR00T-style expert (--arch groot) in one "
                f"stage (--no-two-stage); this run is {self.arch}, {'two stages' if self.two_stage else 'one stage'}, "
                f"VLM {self.vlm_mode}."
            )
        if (self.recipe == "langforce") != bool(self.vlm.queries):
            raise UserError(
                f"vlm.queries is {self.vlm.queries}, recipe is {self.recipe}: LangForce has queries, others have none."
            )
        if self.prior and not self.two_stage:
            raise UserError("A prior was given (--prior) to a one-stage run (--no-two-stage). Choose one.")

    def expert_config(self, stage: int, shape: VLMShape) -> ExpertConfig:
        """The network of one stage on a VLM of this shape. The pi-style rival is as deep as the VLM."""
        common = {k: v for k, v in self.expert.items() if k not in ("apt", "pi", "groot")}
        own = self.expert.get(self.arch) or {}
        if not isinstance(own, Mapping):
            raise UserError(f"expert.{self.arch} is {own!r}; it must be a mapping.")
        own = dict(own)
        if self.arch == "pi":
            own.setdefault("depth", shape.layers)
        return ExpertConfig.from_dict({**common, **own, "arch": self.arch, "stage": stage, "vlm": shape})

    @property
    def joint(self) -> TrainConfig:
        """The stage that trains the whole policy: Stage 2, or the only one."""
        steps = self.stage2.steps
        if not self.two_stage and self.budget == "total":
            steps += self.stage1.steps
        return dataclasses.replace(self.stage2, steps=steps)

    @property
    def label(self) -> str:
        """For people: `apt, two stages, frozen VLM`."""
        stages = "two stages" if self.two_stage else f"one stage ({self.budget} budget)"
        name = "LangForce" if self.recipe == "langforce" else self.arch
        return f"{name}, {stages}, {'KI' if self.ki else self.vlm_mode} VLM"

    def to_yaml(self) -> str:
        """As `load_recipe` reads it."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)


def config_names() -> list[str]:
    """The shipped configurations."""
    return sorted(p.stem for p in CONFIGS.glob("*.yaml"))


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped configuration by name, or a YAML file by path; `overrides` is a mapping of the same form,
    laid over it.

    `train` in it holds what both stages share. Raises UserError for unknown keys and values of a wrong kind.
    """
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else CONFIGS / f"{name}.yaml"
    if not os.path.isfile(path):  # False also for what is too long to be a path
        shipped = f"Shipped are: {', '.join(config_names())}."
        raise UserError(
            f"No file '{name}'. Give --config the path of a YAML file, or a name. {shipped}"
            if own
            else f"No training configuration '{name}'. {did_you_mean(name, config_names())} Or give a YAML file."
        )
    raw = merged(read_yaml(path), overrides or {})
    if raw.get("recipe") == "langforce":
        raw = merged(LANGFORCE, raw)
    shared = _mapping(raw.pop("train", {}), f"{path.name}: train")
    for stage in ("stage1", "stage2"):
        raw[stage] = merged(shared, _mapping(raw.get(stage), f"{path.name}: {stage}"))
    recipe: Recipe = build(Recipe, raw, path.name)
    return recipe


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a mapping, found {type(value).__name__}.")
    return value or {}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, mapping by mapping."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
