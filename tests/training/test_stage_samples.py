"""Two stages share no sample, and the blocks that Stage 2 adds have a learning rate of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from apt_bench.core.digests import write_digests
from apt_bench.core.errors import UserError
from apt_bench.models import checkpoint
from apt_bench.training import two_stage
from apt_bench.training.progress import Report
from apt_bench.training.recipe import load_recipe
from apt_bench.training.samples.stream import Picks, Samples
from apt_bench.training.session import Session
from apt_bench.training.trainer import FIRST_SAMPLE
from apt_bench.training.two_stage import run_recipe, stage_checkpoint


def session(out: Path, cache: Path) -> Session:
    return Session(out, cache, Report(None))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Numbers of the training samples that each stage draws."""
    stages: list[list[int]] = []
    training: list[Samples] = []
    train, pick = two_stage.train, Samples.pick

    def recording_train(model, data, *args, **kwargs):  # type: ignore[no-untyped-def]
        stages.append([])
        training[:] = [data.samples]
        return train(model, data, *args, **kwargs)

    def recording_pick(self: Samples, numbers: range) -> Picks:
        if training and self is training[0]:
            stages[-1].extend(numbers)
        return pick(self, numbers)

    monkeypatch.setattr(two_stage, "train", recording_train)
    monkeypatch.setattr(Samples, "pick", recording_pick)
    return stages


def test_two_stages_share_no_sample(
    config: Path, cache: Path, tmp_path: Path, drawn: list[list[int]]
) -> None:
    run_recipe(
        load_recipe(str(config), {"stage1": {"steps": 3}, "stage2": {"steps": 5, "micro": 4}}),
        session(tmp_path, cache),
    )
    assert drawn == [list(range(24)), list(range(24, 64))]


def test_one_stage_with_the_total_budget_draws_the_samples_of_both_stages(
    config: Path, cache: Path, tmp_path: Path, drawn: list[list[int]]
) -> None:
    change = {"two_stage": False, "budget": "total", "stage1": {"steps": 3}, "stage2": {"steps": 5}}
    run_recipe(load_recipe(str(config), change), session(tmp_path, cache))
    assert drawn == [list(range(64))]


def test_a_checkpoint_of_an_older_version_keeps_its_samples(
    config: Path, cache: Path, tmp_path: Path, drawn: list[list[int]]
) -> None:
    def recipe(steps: int):  # type: ignore[no-untyped-def]
        return load_recipe(str(config), {"stage1": {"steps": 3}, "stage2": {"steps": steps}})

    run_recipe(recipe(2), session(tmp_path, cache))
    for more in (4, 6):
        folder = stage_checkpoint(tmp_path, 2)
        training = json.loads((folder / "training.json").read_text())
        found = training["config"].pop(FIRST_SAMPLE, None)
        assert (found is None) == (more == 6)  # a resumed training stays one of the older version
        (folder / "training.json").write_text(json.dumps(training))
        write_digests(folder)
        drawn.clear()
        run_recipe(recipe(more), session(tmp_path, cache))
        assert drawn[-1] == list(range(8 * (more - 2), 8 * more))


def test_other_steps_of_stage_1_are_refused_once_stage_2_has_begun(
    config: Path, cache: Path, tmp_path: Path
) -> None:
    run_recipe(
        load_recipe(str(config), {"stage1": {"steps": 2}, "stage2": {"steps": 2}}), session(tmp_path, cache)
    )
    longer = load_recipe(str(config), {"stage1": {"steps": 3}, "stage2": {"steps": 2}})
    with pytest.raises(UserError, match=r"was trained with first sample 16, this run has 24.*another --out"):
        run_recipe(longer, session(tmp_path, cache))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_new_blocks_train_at_their_own_rate(
    config: Path, cache: Path, tmp_path: Path, optimizer: str
) -> None:
    stage2 = {"steps": 2, "new_block_lr": 0.0}
    recipe = load_recipe(
        str(config),
        {"train": {"optimizer": optimizer}, "stage1": {"steps": 2}, "stage2": stage2},
    )
    run_recipe(recipe, session(tmp_path / "still", cache))
    vlm, _ = two_stage.open_vlm(recipe)
    torch.manual_seed(2 * recipe.seed + 1)
    fresh = two_stage.build_expert(recipe.expert_config(2, vlm.shape))
    trained = checkpoint.load(stage_checkpoint(tmp_path / "still", 2), vlm=vlm).expert
    prior = checkpoint.load(stage_checkpoint(tmp_path / "still", 1), vlm=vlm).expert
    assert None in fresh.sources
    for i, source in enumerate(fresh.sources):
        before = (fresh.blocks[i] if source is None else prior.blocks[source]).state_dict()
        same = all(torch.equal(before[k], v) for k, v in trained.blocks[i].state_dict().items())
        assert same == (source is None), f"block {i}"


def test_a_rate_of_new_blocks_is_refused_where_no_block_is_new(config: Path) -> None:
    with pytest.raises(UserError, match=r"stage1.new_block_lr is set.*Give stage2.new_block_lr"):
        load_recipe(str(config), {"train": {"new_block_lr": 1e-3}})
    with pytest.raises(UserError, match=r"Stage 2 of pi adds no blocks"):
        load_recipe(str(config), {"arch": "pi", "stage2": {"new_block_lr": 1e-3}})
    assert (
        load_recipe(str(config), {"two_stage": False, "stage2": {"new_block_lr": 1e-3}}).joint.new_block_lr
        is None
    )
