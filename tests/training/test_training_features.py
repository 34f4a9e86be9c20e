"""The feature cache: the same numbers as the VLM, which is then not needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from apt_bench.core.errors import UserError
from apt_bench.models.inputs import VLFeatures
from apt_bench.models.vla import VLA, build_expert
from apt_bench.training.config import AugmentConfig, TrainConfig
from apt_bench.training.recipe import load_recipe
from apt_bench.training.samples.batches import Batches
from apt_bench.training.samples.features import open_features
from apt_bench.training.samples.stream import Samples, open_samples
from apt_bench.training.trainer import losses
from apt_bench.training.two_stage import open_vlm


def make(config: Path, cache: Path, arch: str, stage: int, copies: int = 2) -> tuple[VLA, Samples]:
    recipe = load_recipe(str(config), {"arch": arch, "expert": {"depth": 2}})
    vlm, spec = open_vlm(recipe)
    torch.manual_seed(1)
    model = VLA(vlm, build_expert(recipe.expert_config(stage, vlm.shape)), spec)
    for p in model.expert.parameters():  # no zero-initialised part may hide a difference
        torch.nn.init.normal_(p, std=0.1)
    data = dataclasses.replace(recipe.data, augment=AugmentConfig(copies=copies))
    return model, open_samples(data, 8, 0, vlm.image_size, cache)[0]


@pytest.mark.parametrize("arch", ["apt", "pi", "groot"])
@pytest.mark.parametrize("stage", [1, 2])
def test_cached_features_give_the_loss_that_the_vlm_gives(
    config: Path, cache: Path, arch: str, stage: int
) -> None:
    model, samples = make(config, cache, arch, stage)
    live, cached = (
        Batches(samples, model, 16),
        Batches(samples, model, 16, open_features(model, samples, cache)),
    )
    with torch.no_grad():
        want = losses(model, *live[3], TrainConfig())["total"]
        got = losses(model, *cached[3], TrainConfig())["total"]
    assert abs(got - want) < 2e-3 * want


def test_stage_one_never_runs_the_vlm_again(
    config: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = make(config, cache, "apt", 1)
    open_features(model, samples, cache)

    def read(*args: object) -> VLFeatures:
        raise AssertionError("the VLM was run")

    monkeypatch.setattr(model.vlm, "read", read)
    monkeypatch.setattr(model.vlm, "prepare", read)
    batches = Batches(samples, model, 8, open_features(model, samples, cache))
    losses(model, *batches[0], TrainConfig())["total"].backward()


def test_a_stage_one_cache_holds_no_language(config: Path, cache: Path) -> None:
    model, samples = make(config, cache, "groot", 1)
    lied = [
        dataclasses.replace(
            d, episodes=tuple(dataclasses.replace(e, instruction="fly to the moon") for e in d.episodes)
        )
        for d in samples.datasets
    ]
    one, other = (
        Batches(s, model, 8)[0] for s in (samples, dataclasses.replace(samples, datasets=tuple(lied)))
    )
    with torch.no_grad():
        assert torch.equal(
            losses(model, *one, TrainConfig())["total"], losses(model, *other, TrainConfig())["total"]
        )


def test_another_vlm_or_another_sentence_is_another_cache(config: Path, cache: Path, tmp_path: Path) -> None:
    model, samples = make(config, cache, "apt", 2)
    folders = lambda: {p.name for p in (tmp_path / "features").iterdir()}  # noqa: E731
    open_features(model, samples, tmp_path)
    open_features(model, samples, tmp_path)
    assert len(folders()) == 1
    with torch.no_grad():
        next(model.vlm.parameters()).add_(1e-3)
    open_features(model, samples, tmp_path)
    assert len(folders()) == 2
    episodes = samples.datasets[0].episodes
    changed = (dataclasses.replace(episodes[0], instruction="go home"), *episodes[1:])
    dataset = dataclasses.replace(samples.datasets[0], episodes=changed)
    open_features(model, dataclasses.replace(samples, datasets=(dataset,)), tmp_path)
    assert len(folders()) == 3


def test_fresh_augmentation_cannot_be_cached(config: Path, cache: Path) -> None:
    model, samples = make(config, cache, "apt", 1, copies=0)
    with pytest.raises(UserError, match="fixed number of augmented versions"):
        open_features(model, samples, cache)
