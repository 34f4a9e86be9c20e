"""Settings of the two-stage experiment: words without places, few labels, decisions that need the word, more blocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apt_bench.core.errors import UserError
from apt_bench.demos.demonstration import DemoInfo
from apt_bench.envs.tabletop.layouts import scene_spec
from apt_bench.models.mini_vlm import MiniVLM, MiniVLMConfig
from apt_bench.models.vla import VLA, VLMSpec, build_expert
from apt_bench.suites import EpisodeKey
from apt_bench.training.config import AugmentConfig, DataConfig, LabelConfig, stored_fields
from apt_bench.training.metrics import read_metrics
from apt_bench.training.progress import Report
from apt_bench.training.recipe import load_recipe
from apt_bench.training.samples.episodes import Episode
from apt_bench.training.samples.stream import Dataset, open_samples
from apt_bench.training.samples.word_needed import needs_word
from apt_bench.training.session import Session
from apt_bench.training.two_stage import run_recipe

TABLE = {"layout": "table", "split": "train", "ambiguity": 1.0}


# Words without places


def network(arch: str, plain_words: bool) -> VLA:
    torch.manual_seed(0)
    sizes = MiniVLMConfig(words=("red", "blue"), width=32, heads=2, layers=2, image_size=(16, 16))
    vlm = MiniVLM(sizes)
    expert: dict[str, Any] = {"width": 32, "heads": 2, "horizon": 4, "depth": 2}
    recipe = load_recipe("mini", {"arch": arch, "expert": {**expert, "apt": {"depth": 2, "taps": [0, 1]}}})
    config = dataclasses.replace(recipe.expert_config(2, vlm.shape), depth=2)
    return VLA(vlm, build_expert(config), VLMSpec(name="mini", mini=sizes, plain_words=plain_words))


@pytest.mark.parametrize("arch", ["apt", "groot", "pi"])
def test_words_without_places_are_their_embeddings_at_every_layer(arch: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    plain, read = network(arch, True), network(arch, False)
    prompt = plain.vlm.prepare([[image]], ["red"])
    word = ~plain.features(prompt).is_visual
    found, usual = plain.features(prompt), read.features(prompt)
    for tap, before in zip(found.taps, usual.taps, strict=True):
        assert torch.equal(tap[word], found.embeds[word])
        assert not torch.allclose(before[word], usual.embeds[word])
        assert torch.equal(tap[~word], before[~word])  # images are encoded as before
    other = plain.vlm.prepare([[255 - image]], ["red"])
    for (keys, values), (k, v) in zip(found.kv, plain.features(other).kv, strict=True):
        assert torch.equal(keys[word], k[word])  # no image reaches a word
        assert torch.equal(values[word], v[word])
    assert bool(found.kv) == (arch == "pi")


def test_words_without_places_are_for_the_mini_vlm() -> None:
    with pytest.raises(UserError, match=r"plain_words is for the mini VLM only, and the VLM is org/model"):
        VLMSpec(name="org/model", plain_words=True)


# Few labelled demonstrations


def test_labels_are_spread_over_the_demonstrations_that_name_a_noun() -> None:
    texts = [
        "Move the apple to the bowl.",
        "Move the lemonade to the bowl.",
        "the Lemon",
        "an apple",
        "a can",
    ]
    assert LabelConfig().chosen(texts) == [True] * 5
    assert LabelConfig(count=2).chosen(texts) == [True, False, True, False, False]
    assert LabelConfig(count=2, nouns=("apple", "lemon")).chosen(texts) == [True, False, True, False, False]
    assert LabelConfig(count=9, nouns=("can",)).chosen(texts) == [False] * 4 + [True]
    for other in ({"nouns": ("apple",)}, {"unlabelled": "stage1"}, {"share": 0.5}):
        with pytest.raises(UserError, match=r"data\.labels has no count"):
            LabelConfig(**other)  # type: ignore[arg-type]


def test_the_share_of_labels_applies_where_both_kinds_are_drawn() -> None:
    both = LabelConfig(count=2, share=0.3)
    labels_only = dataclasses.replace(both, unlabelled="stage1")
    assert (both.share_in(1), both.share_in(2)) == (0.3, 0.3)
    assert (labels_only.share_in(1), labels_only.share_in(2)) == (0.3, 1.0)


@pytest.mark.parametrize("unlabelled", ["blind", "stage1"])
def test_unlabelled_demonstrations_have_no_instruction(data: Path, cache: Path, unlabelled: str) -> None:
    labels = LabelConfig(count=3, nouns=("red",), unlabelled=unlabelled)  # type: ignore[arg-type]
    config = DataConfig(
        data=(str(data),),
        cameras=("agentview",),
        held_out=0.1,
        augment=AugmentConfig(enabled=False),
        labels=labels,
    )
    samples, held = open_samples(config, 8, 0, (64, 64), cache)
    (dataset,) = samples.datasets
    said = [e.instruction for e in dataset.episodes]
    assert said.count("go to the red square") == 3
    assert said.count("") == len(said) - 3
    assert held
    assert all(e.instruction for e in held.datasets[0].episodes)
    both = samples.pick(range(400)).instructions
    share = both.count("") / len(both)
    assert abs(share - (1 - 3 / len(said))) < 0.1
    few = dataclasses.replace(samples, label_share=1.0).pick(range(400)).instructions
    assert set(few) == {"go to the red square"}
    half = dataclasses.replace(samples, label_share=0.5).pick(range(400)).instructions
    assert abs(half.count("") / len(half) - 0.5) < 0.1
    assert set(dataclasses.replace(samples, label_share=0.0).pick(range(400)).instructions) == {""}
    with pytest.raises(UserError, match=r"no instruction names one of data\.labels\.nouns \(pink\)"):
        open_samples(
            dataclasses.replace(config, labels=LabelConfig(count=3, nouns=("pink",))), 8, 0, (64, 64), cache
        )


def test_stage_1_draws_all_demonstrations_and_stage_2_the_labelled_ones(
    config: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float | None] = []
    draw = Dataset.draw

    def recording(self: Dataset, rng: np.random.Generator, share: float | None, words: float | None):  # type: ignore[no-untyped-def]
        if self.labelled and len(self.labelled) < len(self.episodes):  # not the held-out ones
            drawn.append(share)
        return draw(self, rng, share, words)

    monkeypatch.setattr(Dataset, "draw", recording)
    change = {
        "stage1": {"steps": 2},
        "stage2": {"steps": 1},
        "data": {"labels": {"count": 2, "unlabelled": "stage1"}},
    }
    run_recipe(load_recipe(str(config), change), Session(tmp_path, cache, Report(None)))
    assert drawn == [None] * 16 + [1.0] * 8


# Decisions that need the word


def demonstration(init: int) -> tuple[DemoInfo, Episode]:
    """A hand that starts above the item that is not the target, goes to the target and closes there."""
    key = EpisodeKey("rigid_pick_place", "train_ambiguous", "to_plate", init, 7)
    scene = scene_spec(TABLE, key.task, init, key.seed)
    at = {item.name: (item.x, item.y) for item in scene.items}
    other = next(name for name in at if name != scene.target)
    path = [at[other], at[scene.target], at[scene.target], at[other]]
    pose = np.tile(np.eye(4), (4, 1, 1))
    pose[:, :2, 3] = path
    info = DemoInfo(key.id, 4, "", key=key, scene={"args": TABLE})
    eye = np.tile(np.eye(3), (1, 1, 1))
    opening = np.array([1.0, 1.0, 0.0, 0.0])
    episode = Episode(
        name=key.id, instruction="Move it.", kept=np.arange(4), decisions=np.arange(4), ee_pose=pose,
        openness=opening, target_pose=pose, target_open=opening, K=eye,
        camera_pose=np.tile(np.eye(4), (4, 1, 1, 1)), present=np.ones(1, bool),
    )  # fmt: skip
    return info, episode


def test_a_decision_needs_the_word_where_another_item_is_nearer() -> None:
    for init in range(5):
        info, episode = demonstration(init)
        assert needs_word(info, episode).tolist() == [True, False, False, False]
    with pytest.raises(UserError, match=r"does not record a tabletop scene.*data\.word_share"):
        needs_word(dataclasses.replace(info, scene={}), episode)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_given_share_of_the_samples_needs_the_word(share: float) -> None:
    pairs = [demonstration(i) for i in range(3)]
    episodes = tuple(e for _, e in pairs)
    flags = np.concatenate([needs_word(*pair) for pair in pairs])
    dataset = Dataset(episodes, np.arange(0, 12, 4), None, "", labelled=(0, 2), needs_word=flags)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    drawn = [dataset.draw(rng, None, share) for _ in range(1000)]
    assert abs(np.mean([flags[4 * e + d] for e, d in drawn]) - share) < 0.05
    assert {e for e, _ in drawn} == {0, 1, 2}
    assert {e for e, _ in (dataset.draw(rng, 1.0, share) for _ in range(100))} == {0, 2}
    uniform = [dataset.draw(rng, None, None) for _ in range(1000)]
    assert abs(np.mean([flags[4 * e + d] for e, d in uniform]) - 0.25) < 0.05


def test_digests_of_older_versions_stay_valid() -> None:
    config = DataConfig(data=("a",))
    older = {k: v for k, v in stored_fields(config).items() if k not in ("data", "labels", "word_share")}
    assert config.identity() == older
    assert "word_share" in dataclasses.replace(config, word_share=0.5).identity()
    assert "labels" in dataclasses.replace(config, labels=LabelConfig(count=3)).identity()


# Depth and scale


@pytest.mark.parametrize("scale", [1, 3])
def test_eight_blocks_of_which_four_take_language_train(
    config: Path, cache: Path, tmp_path: Path, scale: int
) -> None:
    expert = {"depth": 8, "taps": [1] * 8, "position_scale": scale}
    change = {"expert": expert, "vlm": {"plain_words": True}, "new_blocks": "identity"}
    recipe = load_recipe(str(config), {**change, "stage1": {"steps": 1}, "stage2": {"steps": 1}})
    vlm = recipe.vlm.load()
    plan = build_expert(recipe.expert_config(2, vlm.shape)).plan  # type: ignore[attr-defined]
    assert sum(not block.isolated for block in plan) == 4
    run_recipe(recipe, Session(tmp_path, cache, Report(None)))
    assert np.isfinite(read_metrics(tmp_path / "stage2")[-1]["loss"])
