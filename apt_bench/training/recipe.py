"""A recipe: everything that defines a training run. It is read from a shipped YAML file, a user's own file and the
command line."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from apt_bench.core.config import Natural, build, check_fields, check_keys, read_yaml
from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.models.config import ExpertConfig, VLMShape
from apt_bench.models.vla import VLMSpec
from apt_bench.models.vlm import VLMMode
from apt_bench.training.config import DataConfig, PretrainConfig, SuiteEpisodes, TrainConfig, current_names

CONFIGS = Path(__file__).parent / "configs"


LANGFORCE = {"arch": "groot", "two_stage": False, "vlm_mode": "full", "vlm": {"queries": 64}}
"""Defaults under `recipe: langforce`."""


@dataclass(frozen=True)
class Recipe:
    """Which network is trained, in which stages, on which data.

    Attributes:
        about: One sentence for people.
        recipe: `plain`, or `langforce` (models/langforce.py), which trains the VLM and a GR00T-style expert in one
            stage.
        arch: Architecture of the expert.
        two_stage: Whether Stage 1, a language-blind prior over actions, is trained first.
        ki: Knowledge Insulation: action gradients do not reach the VLM. The VLM has no other loss here, so this equals
            `vlm_mode: frozen`; tables show it as KI.
        vlm_mode: How Stage 2 treats the VLM. Stage 1 always freezes it.
        inherit: What Stage 2 takes from the prior; `blocks` = what the released loader takes.
        new_blocks: Initial state of Stage 2's new blocks: `random` (released), or `identity`, so that the policy
            initially equals the prior.
        budget: A one-stage control trains as many steps as Stage 2 (`joint`) or as both stages together (`total`).
        prior: Stage-1 checkpoint to start from; empty = train one.
        start: Trained policy to finetune: the last stage starts from its expert and VLM. Empty = train a new one.
        seed: Seed of weights, samples and noise.
        vlm: The vision-language model.
        vlm_weights: Folder of a pretrained mini VLM; folder or shipped name of a policy that contains one; or
            `auto`: the one that `pretrain` describes, shipped, from the cache, or pretrained now.
        expert: Fields of `ExpertConfig`; a mapping under an architecture's name applies to that one only.
        data: The demonstrations.
        stage1: Training settings of Stage 1.
        stage2: Training settings of Stage 2.
        cache_features: Whether features of a frozen VLM are computed once and cached.
        collect: Episodes to collect as demonstrations if `data` names none.
        also_collect: Episodes of a second suite to collect with them.
        pretrain: Pretraining of the mini VLM.
        evaluate: Episodes of the short evaluation at the end.
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
    start: str = ""
    seed: Natural = 0
    vlm: VLMSpec = field(default_factory=VLMSpec)
    vlm_weights: str = ""
    expert: Mapping[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    stage1: TrainConfig = field(default_factory=TrainConfig)
    stage2: TrainConfig = field(default_factory=TrainConfig)
    cache_features: bool = True
    collect: SuiteEpisodes = field(default_factory=SuiteEpisodes)
    also_collect: SuiteEpisodes = field(default_factory=SuiteEpisodes)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    evaluate: SuiteEpisodes = field(default_factory=SuiteEpisodes)

    def __post_init__(self) -> None:
        check_fields(self, "Recipe")
        if self.ki and self.vlm_mode != "frozen":
            raise UserError(
                f"--ki blocks action gradients into the VLM, --vlm-mode {self.vlm_mode} needs them. Choose one."
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
                f"vlm.queries is {self.vlm.queries}, recipe is {self.recipe}. LangForce needs queries; other recipes "
                "have none."
            )
        if self.prior and not self.two_stage:
            raise UserError("A prior was given (--prior) to a one-stage run (--no-two-stage). Choose one.")
        if self.prior and self.start:
            raise UserError(
                "Stage 2 starts either from a Stage-1 prior (--prior) or from a whole policy (--start). Choose one."
            )
        if self.start and self.vlm_weights not in ("", "auto"):
            raise UserError(
                f"The policy to finetune (--start) has a VLM of its own, and another one is given: {self.vlm_weights}. "
                "Leave out --vlm."
            )
        if self.stage1.new_block_lr is not None:
            raise UserError(
                "stage1.new_block_lr is set, but Stage 1 adds no blocks. Give stage2.new_block_lr."
            )
        if self.two_stage and self.stage2.new_block_lr is not None and self.arch != "apt":
            raise UserError(
                f"stage2.new_block_lr is set, but Stage 2 of {self.arch} adds no blocks. Leave it out, or give "
                "--arch apt."
            )

    def expert_config(self, stage: int, shape: VLMShape) -> ExpertConfig:
        """The expert of one stage on a VLM of this shape. The pi-style expert has one block per VLM layer."""
        common = {k: v for k, v in self.expert.items() if k not in ("apt", "pi", "groot")}
        own = self.expert.get(self.arch) or {}
        if not isinstance(own, Mapping):
            raise UserError(f"expert.{self.arch} is {own!r}; it must be a mapping.")
        own = dict(own)
        if self.arch == "pi":
            own.setdefault("depth", shape.layers)
        values = {**common, **own, "arch": self.arch, "stage": stage, "vlm": shape}
        config: ExpertConfig = build(ExpertConfig, values, "Expert config")
        return config

    @property
    def collections(self) -> tuple[SuiteEpisodes, ...]:
        """The episodes to collect; empty where `data` names the demonstrations."""
        wanted = () if self.data.data else (self.collect, self.also_collect)
        return tuple(episodes for episodes in wanted if episodes.suite)

    @property
    def trains_prior(self) -> bool:
        """Whether Stage 1 is part of the training."""
        return self.two_stage and not self.prior and not self.start

    @property
    def joint(self) -> TrainConfig:
        """Settings of the stage that trains the whole policy: Stage 2, or the only one."""
        if self.two_stage:
            return self.stage2
        before = self.stage1.steps if self.budget == "total" else 0
        return dataclasses.replace(self.stage2, steps=before + self.stage2.steps, new_block_lr=None)

    @property
    def label(self) -> str:
        """A short description: `apt, two stages, frozen VLM`."""
        stages = "two stages" if self.two_stage else f"one stage ({self.budget} budget)"
        if self.start:
            stages = f"finetuning {Path(self.start).name}"
        name = "LangForce" if self.recipe == "langforce" else self.arch
        return f"{name}, {stages}, {'KI' if self.ki else self.vlm_mode} VLM"

    def to_yaml(self) -> str:
        """The recipe as YAML that `load_recipe` reads."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)


def config_names() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(p.stem for p in CONFIGS.glob("*.yaml"))


def recipe_parts(name: str) -> tuple[str, ...]:
    """The configurations that a shipped configuration's `parts` lists, which are trained one after the other; otherwise
    the name alone."""
    path = CONFIGS / f"{name}.yaml"
    if name not in config_names() or "parts" not in (raw := read_yaml(path)):
        return (name,)
    found: tuple[str, ...] = build(tuple[str, ...], raw["parts"], f"{path.name}: parts")
    return found


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        name: A shipped configuration's name, or the path of a YAML file. `train` in it holds what both stages share.
            `extends` names a shipped configuration whose settings apply where the file has none.
        overrides: A mapping of the same form; its values replace those of the file.

    Returns:
        The recipe.

    Raises:
        UserError: There is no such configuration, a key is unknown, or a value is of a wrong type or out of range.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / f"{name}.yaml"
    raw = merged(_settings(name, path), current_names(overrides or {}))
    if raw.get("recipe") == "langforce":
        raw = merged(LANGFORCE, raw)
    shared = _mapping(raw.pop("train", {}), f"{path.name}: train")
    _check_shared(shared, f"{path.name}: train")
    for stage in ("stage1", "stage2"):
        raw[stage] = merged(shared, _mapping(raw.get(stage), f"{path.name}: {stage}"))
    recipe: Recipe = build(Recipe, raw, path.name)
    return recipe


def _settings(name: str, path: Path, most: int = 8) -> dict[str, Any]:
    """The content of a configuration file, over that of the shipped configuration that its `extends` names."""
    if not os.path.isfile(path):  # False also for what is too long to be a path
        shipped = f"Shipped are: {', '.join(config_names())}."
        raise UserError(
            f"No file '{name}'. Give --config the path of a YAML file, or a name. {shipped}"
            if path == Path(name)
            else f"No training configuration '{name}'. {did_you_mean(name, config_names())} Or give a YAML file."
        )
    raw = current_names(read_yaml(path))
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str) or base not in config_names() or not most:
        raise UserError(
            f"{path}: extends must name one of {', '.join(config_names())}, and no circle of them."
        )
    return merged(_settings(base, CONFIGS / f"{base}.yaml", most - 1), raw)


def _check_shared(shared: Mapping[str, Any], where: str) -> None:
    """Check each setting of `train`, also one that both stages override."""
    check_keys([(TrainConfig, shared, where)])
    types = typing.get_type_hints(TrainConfig, include_extras=True)
    for name, value in shared.items():
        build(types[name], value, f"{where}: {name}")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a mapping, found {type(value).__name__}.")
    return value or {}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, merged mapping by mapping."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
