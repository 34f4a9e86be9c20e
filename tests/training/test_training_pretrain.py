"""The mini VLM's pretraining: its sentences, and that they are learned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from apt_bench.core.errors import UserError
from apt_bench.envs.tabletop.catalog import CONTAINERS, EXTRA_CONTAINERS, ITEMS
from apt_bench.envs.tabletop.layouts import CONTAINER_SETS
from apt_bench.models.mini_vlm import END_ID, FIRST_WORD, MiniVLM, MiniVLMConfig
from apt_bench.suites import load_suite
from apt_bench.training.config import OBSERVATIONS_PER_SCENE, PretrainConfig, TrainConfig
from apt_bench.training.metrics import read_metrics
from apt_bench.training.progress import Report
from apt_bench.training.vlm_pretraining.loop import grounding, new_mini, pretrain
from apt_bench.training.vlm_pretraining.losses import Heads, pair_batch, pair_losses
from apt_bench.training.vlm_pretraining.scenes import (
    MOST,
    SceneImages,
    VisibleObject,
    open_scene_images,
)
from apt_bench.training.vlm_pretraining.sentences import SentenceMaker, vocabulary
from apt_bench.training.vlm_pretraining.state import save_state
from apt_bench.training.vlm_pretraining.tabletop_scenes import TabletopScenes, phrases, scene
from apt_bench.training.vlm_pretraining.weights import load_mini, made_by

SIZES = MiniVLMConfig(width=32, heads=2, layers=2, image_size=(64, 64), stride=16)
SOURCE = TabletopScenes()
NAMES = ("red_can", "blue_can", "pear", "bowl")
COLOURS = ((220, 20, 20), (20, 40, 220), (60, 200, 40), (240, 240, 240))


def pictures(count: int) -> SceneImages:
    """Looks at coloured squares on grey, each named after something of the catalogue; a name that is in both pictures
    of a look is elsewhere in each."""
    rng = np.random.default_rng(0)
    images, cover = np.full((count, 2, 64, 64, 3), 90, np.uint8), np.zeros((count, MOST, 2, 4, 4), np.float16)
    observations = []
    for n in range(count):
        places: dict[int, list[tuple[float, float] | None]] = {}
        for view in range(2):
            for k, cell in enumerate(rng.choice(16, 3, replace=False)):
                which, (row, col) = (n + view + k) % 4, divmod(int(cell), 4)
                images[n, view, 16 * row : 16 * row + 16, 16 * col : 16 * col + 16] = COLOURS[which]
                places.setdefault(which, [None, None])[view] = ((col + 0.5) / 4, (row + 0.5) / 4)
                cover[n, list(places).index(which), view, row, col] = 1
        observations.append(tuple(shown(NAMES[which], *spots) for which, spots in places.items()))
    return SceneImages(images, cover, tuple(observations))


def shown(kind: str, *places: tuple[float, float] | None) -> VisibleObject:
    return VisibleObject(kind, phrases(kind), places)


def mini() -> MiniVLM:
    return new_mini(SIZES, PretrainConfig())


def test_the_robots_sentence_form_stays_out_but_its_nouns_are_known() -> None:
    suite = load_suite("rigid_pick_place")
    words = vocabulary(SOURCE)
    assert "move" not in words
    for cell in suite.cells:
        for spec in suite.select([cell.name], episodes=20):
            form, noun = spec.prompt.lower().rstrip(".").split("the ", 1)
            assert form == "move "
            unknown = [w for w in noun.replace(" to the ", " ").split() if w not in words]
            assert not unknown, spec.prompt
    tokenizer = mini().tokenizer
    assert set(SOURCE.kinds) == {*ITEMS, *CONTAINERS} - set(EXTRA_CONTAINERS)
    for name in SOURCE.kinds:
        for phrase in phrases(name):
            assert min(tokenizer(phrase)) >= FIRST_WORD, phrase


def test_scenes_with_more_containers_show_and_name_them() -> None:
    assert set(TabletopScenes(more_containers=True).kinds) == {*ITEMS, *CONTAINERS}
    tasks = {scene(index, more_containers=True).key.task for index in range(96)}
    assert tasks >= {f"to_{c.replace(' ', '_')}" for c in (*CONTAINER_SETS["seen6"], "mug")}


def test_sentences_mean_what_they_say() -> None:
    maker = SentenceMaker(mini().tokenizer, SOURCE)
    words = {v: k for k, v in maker.tokenizer.ids.items()}
    things = (
        shown("red_can", (0.2, 0.5), None),
        shown("bowl", (0.8, 0.5), (0.1, 0.5)),
        shown("pear", None, (0.5, 0.5)),
    )
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        s = maker.sentence(things, rng)
        text = " ".join(words.get(i, "") for i in s.ids)
        seen.add(" ".join(text.split()[:2]))
        assert "move" not in text
        assert s.ids[-1] == END_ID
        for place, thing in s.nouns:
            assert words[s.ids[place]] in " ".join(things[thing].phrases).split()
        answer = " ".join(words.get(i, "") for i in s.ids[s.answer :]).strip()
        if text.strip().startswith("what is left of the bowl"):
            assert answer in things[0].phrases
        if text.strip().startswith("what is left of the red"):
            assert answer == "nothing"
        if text.strip().startswith("how many"):
            assert answer == "three"
        if answer == "no":
            assert not any(p in text.split("there a")[1] for t in things for p in t.phrases)
    assert seen >= {"where is", "there is", "what is", "is there", "how many"}


@pytest.mark.medium
def test_it_learns_to_point() -> None:
    torch.manual_seed(0)
    scenes, vlm = pictures(16), mini()
    heads, maker = Heads(vlm.config.width, 2), SentenceMaker(vlm.tokenizer, SOURCE)
    optim = torch.optim.AdamW([*vlm.parameters(), *heads.parameters()], lr=3e-3)
    first: dict[str, float] = {}
    for step in range(150):
        batch = pair_batch(scenes, np.arange(16), maker, 4, np.random.default_rng(step))
        losses = pair_losses(vlm, heads, batch, SOURCE.kinds)
        first = first or {k: v.item() for k, v in losses.items()}
        losses["total"].backward()
        optim.step()
        optim.zero_grad()
    assert losses["total"].item() < 0.5 * first["total"]
    assert losses["offset"].item() < 0.5 * first["offset"]
    assert losses["point"].item() < 0.5 * first["point"]
    found = grounding(vlm, heads, scenes, np.arange(16), "where is the {} ?", maker)
    assert found["seen"] > 0.6  # a guess: 0.02


def test_without_places_only_captions_and_region_words_are_trained() -> None:
    torch.manual_seed(0)
    scenes, vlm = pictures(4), mini()
    heads, maker = Heads(vlm.config.width, 2), SentenceMaker(vlm.tokenizer, SOURCE)
    batch = pair_batch(scenes, np.arange(4), maker, 4, np.random.default_rng(0))
    losses = pair_losses(vlm, heads, batch, SOURCE.kinds, places=False)
    torch.testing.assert_close(losses["total"], losses["words"] + losses["what"])
    losses["total"].backward()
    assert {name for name, p in heads.named_parameters() if p.grad is None} == {
        f"{head}.{part}" for head in ("where", "point", "offset") for part in ("weight", "bias")
    }
    usual = pair_losses(vlm, heads, batch, SOURCE.kinds)
    torch.testing.assert_close(usual["total"], sum(v for k, v in usual.items() if k != "total"))


@pytest.mark.sim
def test_a_short_run_on_rendered_scenes(tmp_path: Path) -> None:
    rule = TrainConfig(steps=2, batch=4, warmup=1, log_every=1, save_every=2)
    config = PretrainConfig(scenes=6, held_out=2, sentences=3, train=rule)
    pretrain(mini(), config, tmp_path / "mini", Report(None), tmp_path)
    assert load_mini(tmp_path / "mini").config.words == vocabulary(SOURCE)
    assert [row["step"] for row in read_metrics(tmp_path / "mini")] == [1, 2]
    assert made_by(tmp_path / "mini", SIZES, config)
    assert not made_by(tmp_path / "mini", SIZES, dataclasses.replace(config, sentences=4))
    scenes = open_scene_images(SOURCE, SIZES, 6, tmp_path)
    named = {t.kind for things in scenes.objects for t in things}
    assert len(named & set(ITEMS)) > 5
    assert named & set(CONTAINERS)
    assert scenes.images[:, 0].std() > 20
    assert all(
        sum(t.places[0] is not None for t in things) >= 4
        for things in scenes.objects[::OBSERVATIONS_PER_SCENE]
    )
    assert (
        scenes.images[0, 0] != scenes.images[1, 0]
    ).mean() > 0.2  # another camera, another pose of the arm


class Killed(Exception):
    """As if the process had gone."""


def test_a_killed_pretraining_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*args: object) -> None:
        save_state(*args)  # type: ignore[arg-type]
        raise Killed

    scenes = pictures(4 * OBSERVATIONS_PER_SCENE)
    monkeypatch.setattr("apt_bench.training.vlm_pretraining.loop.open_scene_images", lambda *_: scenes)
    rule = TrainConfig(steps=4, batch=4, warmup=1, schedule="cosine", lr=1e-3, log_every=1, save_every=2)
    config = PretrainConfig(scenes=4, held_out=1, sentences=3, train=rule)
    whole = mini()
    pretrain(whole, config, tmp_path / "whole", Report(None))
    with monkeypatch.context() as patch:
        patch.setattr("apt_bench.training.vlm_pretraining.loop.save_state", dies)
        with pytest.raises(Killed):
            pretrain(mini(), config, tmp_path / "killed", Report(None))
    again = mini()
    with pytest.raises(UserError, match="other settings"):
        pretrain(again, dataclasses.replace(config, sentences=4), tmp_path / "killed", Report(None))
    pretrain(again, config, tmp_path / "killed", Report(None))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert not (tmp_path / "killed" / "state.safetensors").exists()


def test_a_folder_that_is_no_mini_vlm(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a pretrained mini VLM"):
        load_mini(tmp_path)
