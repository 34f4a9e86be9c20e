"""The whole recipe of a small policy for LIBERO in toy size: images, VLM, demonstrations, both stages, evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apt_bench.models import checkpoint

TOY = {
    "pretrain.scenes": 8,
    "pretrain.held_out": 2,
    "pretrain.train.steps": 2,
    "pretrain.train.batch": 4,
    "collect.limit": 1,
    "also_collect.suite": "libero_base",
    "also_collect.cells": "[train_spatial]",
    "also_collect.image_every": 6,
    "also_collect.limit": 1,
    "data.held_out": 0,
    "train.batch": 8,
    "stage1.steps": 2,
    "stage2.steps": 2,
    "evaluate.limit": 1,
}


@pytest.mark.sim
def test_the_recipe_of_a_libero_policy_runs_from_images_to_evaluation(
    cli: Callable[..., str], tmp_path: Path
) -> None:
    words = ["train", "--two-stage", "--config", "mini-libero-spatial", "--device", "cpu"]
    words += ["--out", tmp_path / "run", "--cache", tmp_path / "cache"]
    words += [word for key, value in TOY.items() for word in ("--set", f"{key}={value}")]
    said = cli(*words, code=0)
    for part in ("demonstrations", "mini VLM", "stage 1", "stage 2", "evaluation"):
        assert part in said
    folders = sorted(path.name.partition("-")[0] for path in (tmp_path / "cache" / "demos").iterdir())
    assert folders == ["libero_base", "libero_drawn"]
    policy = tmp_path / "run" / "policy"
    assert len(json.loads((policy / "provenance.json").read_text())["data"]) == 2
    assert checkpoint.load(policy).expert.config.stage == 2
    records = (tmp_path / "run" / "evaluation" / "episodes.jsonl").read_text().splitlines()
    assert [json.loads(line)["outcome"] in ("failure", "timeout", "success") for line in records] == [True]
    again = cli(*words, code=0)  # every part is found, nothing is done twice
    assert "Pretraining a mini VLM" not in again
    assert (tmp_path / "run" / "evaluation" / "episodes.jsonl").read_text().splitlines() == records


def test_one_command_names_its_parts_and_refuses_options_of_one_part(cli: Callable[..., str]) -> None:
    assert "--data fits one" in cli("train", "--config", "mini-libero", "--data", "x", code=2)
    said = cli("train", "--config", "mini-libero", "--dry-run", code=0)
    assert said.count("about:") == 4
