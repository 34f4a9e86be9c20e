"""The types of the settings refuse impossible numbers from YAML, the command line and Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apt_bench.core.errors import UserError
from apt_bench.models.config import PARAMETERS, ExpertConfig, VLMShape
from apt_bench.models.mini_vlm import MiniVLMConfig
from apt_bench.models.vla import VLMSpec, build_expert
from apt_bench.training.config import (
    AugmentConfig,
    DataConfig,
    PretrainConfig,
    SuiteEpisodes,
    TrainConfig,
    stored_fields,
)
from apt_bench.training.recipe import load_recipe

BAD: list[tuple[dict[str, Any], str]] = [
    ({"train": {"lr": float("nan")}}, "lr is nan; it must be finite"),
    ({"train": {"lr": -1e-4}}, "lr is -0.0001; it must be at least 0"),
    ({"train": {"lr": True}}, "lr is True; it must be a number"),
    ({"stage1": {"steps": -5}}, "steps is -5; it must be at least 1"),
    ({"train": {"batch": 0}}, "batch is 0"),
    ({"train": {"clip": 0}}, "clip is 0.0; it must be above 0"),
    ({"train": {"micro": -1}}, "micro is -1"),
    ({"train": {"warmup": -1}}, "warmup is -1"),
    ({"train": {"save_every": 0}}, "save_every is 0"),
    ({"train": {"loaders": -1}}, "loaders is -1"),
    ({"stage2": {"steps": 10**30}}, "too large"),
    ({"train": 5}, "train: expected a mapping"),
    ({"stage1": "fast"}, "stage1: expected a mapping"),
    ({"data": {"held_out": 1.5}}, "held_out is 1.5; it must be at least 0 and below 1"),
    ({"data": {"stride": 0}}, "stride is 0"),
    ({"data": {"image_every": -2}}, "image_every is -2"),
    ({"data": {"look_every": -2}}, "image_every is -2"),
    ({"data": {"weights": [-1], "data": ["a"]}}, "weights is -1.0"),
    ({"data": {"augment": {"jitter": -0.1}}}, "jitter is -0.1"),
    ({"data": {"augment": {"copies": 10**9}}}, "copies is 1000000000"),
    ({"data": {"augment": {"blur_sigma": [1, 2, 3]}}}, "must have 2 values"),
    ({"data": {"augment": {"blur_sigma": [0.1, 1e9]}}}, "blur_sigma is 1000000000.0"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": True}, "seed is True"),
    ({"collect": {"episodes": -1}}, "episodes is -1"),
    ({"collect": {"size": 0}}, "size is 0"),
    ({"evaluate": {"execute": 0}}, "execute is 0"),
    ({"pretrain": {"scenes": 61, "held_out": 60}}, "fewer than a batch of 32"),
    ({"vlm": {"queries": -4}}, "queries is -4"),
    ({"vlm": {"mini": {"image_size": [0, 0]}}}, "image_size is 0"),
    ({"vlm": {"mini": {"image_size": [128]}}}, "must have 2 values"),
    ({"vlm": {"mini": {"heads": 0}}}, "heads is 0"),
    ({"vlm": {"mini": {"width": 960_000}}}, "width is 960000"),
    ({"vlm": {"mini": {"layers": 10**9}}}, "layers is 1000000000"),
    ({"expert": {"heads": 0}}, "heads is 0"),
    ({"expert": {"width": 960_000}}, "width is 960000"),
    ({"expert": {"apt": {"depth": 10**9, "taps": []}}}, "depth is 1000000000"),
    ({"expert": {"apt": 3}}, "it must be a mapping"),
    ({"expert": {"horizon": 0}}, "horizon is 0"),
    ({"expert": {"position_scale": 0}}, "position_scale is 0"),
    ({"expert": {"width": 8, "heads": 3}}, "width / heads must be a multiple of 8"),
]


@pytest.mark.parametrize(("over", "says"), BAD)
def test_a_setting_that_cannot_be_meant_is_refused(over: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("mini", over).expert_config(2, VLMShape(128, 3, 4, 32, None))
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["batch", "steps"])
def test_a_shared_setting_is_checked_though_both_stages_override_it(name: str) -> None:
    over = {"train": {name: -1}, "stage1": {name: 4}, "stage2": {name: 4}}
    with pytest.raises(UserError, match=rf"mini\.yaml: train: {name} is -1; it must be at least 1"):
        load_recipe("mini", over)
    load_recipe("mini", over | {"train": {"micro": 3}, "stage1": {"batch": 3}, "stage2": {"batch": 3}})


def test_an_unknown_shared_setting_is_named() -> None:
    with pytest.raises(UserError, match=r"mini\.yaml: train: unknown key 'step'. Did you mean 'steps'"):
        load_recipe("mini", {"train": {"step": 3}})


def test_files_with_the_old_name_of_image_every_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("data: {look_every: 3}\ncollect: {look_every: 2}\n")
    recipe = load_recipe(str(path))
    assert (recipe.data.image_every, recipe.collect.image_every) == (3, 2)
    assert load_recipe(str(path), {"data": {"image_every": 5}}).data.image_every == 5
    assert "look_every" not in recipe.to_yaml()
    assert stored_fields(recipe.data)["look_every"] == 3  # digests of older versions stay valid
    path.write_text("data: {look_every: 3, image_every: 2}\n")
    with pytest.raises(UserError, match="'look_every' is the old name of 'image_every'"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TrainConfig, {"lr": -1.0}),
        (TrainConfig, {"lr": float("nan")}),
        (TrainConfig, {"steps": True}),
        (TrainConfig, {"schedule": "linear"}),
        (DataConfig, {"held_out": 1.0}),
        (DataConfig, {"weights": (float("inf"),), "data": ("a",)}),
        (AugmentConfig, {"copies": -1}),
        (SuiteEpisodes, {"episodes": 0}),
        (PretrainConfig, {"sentences": 0}),
        (MiniVLMConfig, {"stride": 0}),
        (MiniVLMConfig, {"width": 33}),
        (VLMSpec, {"mode": "half"}),
        (VLMShape, {"layers": 0}),
        (ExpertConfig, {"heads": 0}),
        (ExpertConfig, {"stage": 1.0}),
        (ExpertConfig, {"depth": -2}),
        (ExpertConfig, {"plane": float("inf")}),
        (ExpertConfig, {"lower_planes": (0.4,)}),
        (ExpertConfig, {"lower_planes": (0.4,), "plane": 0.1}),
    ],
)
def test_a_setting_made_in_python_is_checked_as_well(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        kind(**values)


def test_a_network_too_large_is_refused_before_it_is_made() -> None:
    """960 GB of weights would kill the machine; the count takes no memory."""
    with pytest.raises(UserError, match=f"the maximum is {PARAMETERS / 1e9:g} billion"):
        build_expert(ExpertConfig(width=16_384, heads=128, depth=64))
    with pytest.raises(UserError, match="The mini VLM would have"):
        VLMSpec(name="mini", mini=MiniVLMConfig(width=4096, layers=256)).load()


def test_options_that_cannot_be_meant(cli: Any) -> None:
    assert "steps is 0" in cli("train", "--stage1-steps", 0, "--steps", 5, "--dry-run")
    assert "--workers is 0" in cli("train", "--workers", 0, "--dry-run")
    assert "--set seed is given twice" in cli("train", "--set", "seed=1", "--set", "seed=2", "--dry-run")
    both = cli("train", "--seed", 1, "--set", "seed=2", "--dry-run")
    assert "--set seed and an option of apt-bench train both set seed. Give one of them." in " ".join(
        both.split()
    )
    both = cli("train", "--data", "a", "--data", "b", "--set", "data.weights=[1, 3]", "--dry-run")
    assert "both set data.weights. Write the weights as --data PATH=WEIGHT." in " ".join(both.split())
