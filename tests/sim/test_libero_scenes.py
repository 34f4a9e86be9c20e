"""LIBERO's scenes for pretraining the mini VLM: which object is where, and the phrases that mean it alone."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.envs.base import unmirrored
from apt_bench.envs.libero import LiberoEnv
from apt_bench.envs.libero.drawn_tasks import RELATIONS
from apt_bench.models.mini_vlm import FIRST_WORD, MiniVLMConfig
from apt_bench.suites import load_suite
from apt_bench.training.config import PretrainConfig, TrainConfig
from apt_bench.training.progress import Report
from apt_bench.training.vlm_pretraining.libero_scenes import SEED, LiberoScenes
from apt_bench.training.vlm_pretraining.loop import new_mini, pretrain
from apt_bench.training.vlm_pretraining.sentences import vocabulary
from apt_bench.training.vlm_pretraining.weights import SHIPPED, load_mini

pytestmark = pytest.mark.sim


def test_masks_are_at_the_objects_in_images_that_are_not_mirrored() -> None:
    source = LiberoScenes(("spatial",))
    (rendered,) = islice(source.render(range(3, 4)), 1)
    env = LiberoEnv()
    seen = env.reset(source._spec(3), ("agentview",), privileged=True)
    image, K = unmirrored(seen.images["agentview"], seen.cameras["agentview"].K)
    grey = np.abs(rendered.images[0].astype(float) - image).mean()
    assert grey < 3, "without multisampling, but the same scene"
    camera, scene = seen.cameras["agentview"].pose, env.scene
    checked = 0
    for one in rendered.objects:
        mask = one.masks[0]
        alike = [o for o in scene.objects.values() if o.category == one.kind and o.movable]
        if mask.mean() < 0.002 or len(alike) != 1:
            continue
        point = camera[:3, :3].T @ (scene.data.xpos[alike[0].body] - camera[:3, 3])
        u, v = (K @ point)[:2] / point[2] / image.shape[0]
        row, column = (np.argwhere(mask) + 0.5).mean(0) / mask.shape
        assert abs(u - column) < 0.04, one.kind
        assert abs(v - row) < 0.06, one.kind
        checked += 1
    assert checked >= 3
    env.close()


def test_each_bowl_has_the_relations_in_which_it_stands_alone() -> None:
    source = LiberoScenes(("spatial",))
    for index in range(2):
        spec = source._spec(index)
        rendered = next(iter(source.render(range(index, index + 1))))
        bowls = [o for o in rendered.objects if o.kind == "akita_black_bowl"]
        assert len(bowls) == 2
        first, second = (set(b.phrases) for b in bowls)
        assert not first & second
        target = spec.args["wanted"]["target"]
        assert all(f"black bowl {phrase}" in first for phrase in RELATIONS[target])
        assert f"black bowl not {target}" in second
        plates = [o.phrases for o in rendered.objects if o.kind == "plate"]
        assert plates == [("plate",)]


def test_scenes_of_libero_long_take_turns_and_their_parts_have_names() -> None:
    source = LiberoScenes(("long",))
    kinds = [source._spec(n).args["layout"] for n in range(0, 180, 20)]
    assert len(set(kinds)) == 9
    expected = {
        "living_room_scene5": {"left plate", "right plate", "white mug", "red mug"},
        "kitchen_scene6": {"microwave", "microwave door", "white mug"},
        "kitchen_scene8": {"left moka pot", "right moka pot", "burner", "knob"},
        "study_scene1": {"book", "cup", "back compartment", "left compartment", "right compartment"},
    }
    for kind, wanted in expected.items():
        number = 20 * kinds.index(kind)
        rendered = next(iter(source.render(range(number, number + 1))))
        seen = {p: one.masks[0] for one in rendered.objects for p in one.phrases if one.masks[0].any()}
        assert wanted <= set(seen), kind
        assert {one.kind for one in rendered.objects} <= set(source.kinds)
        assert "mug" not in seen or kind == "study_scene1"
        for left, right in (("left plate", "right plate"), ("left moka pot", "right moka pot")):
            if left in seen:
                assert np.argwhere(seen[left])[:, 1].mean() < np.argwhere(seen[right])[:, 1].mean()
        if kind == "study_scene1":
            masks = {side: seen[f"{side} compartment"] for side in ("left", "back", "right")}
            across = [np.argwhere(m)[:, 1].mean() for m in masks.values()]
            assert across == sorted(across)
            assert not (masks["left"] & masks["back"]).any()


def test_scenes_are_not_those_of_any_run() -> None:
    suite = load_suite("libero_drawn")
    source = LiberoScenes(("object", "spatial"))
    assert suite.seed != SEED
    kinds = {source._spec(n).args["benchmark"] for n in range(0, 80, 20)}
    assert kinds == {"libero_object", "libero_spatial"}
    assert {source._spec(n).group for n in range(20)} == {source._spec(0).group}
    for wrong in ({"source": "libero"}, {"cells": ("object",)}):
        with pytest.raises(UserError, match="pretrain: source is "):
            PretrainConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no cell 'nowhere'"):
        LiberoScenes(("nowhere",))


def test_pretraining_goes_on_from_weights_with_more_words(tmp_path: Path) -> None:
    rule = TrainConfig(steps=1, batch=2, warmup=1, log_every=1, save_every=1)
    config = PretrainConfig(
        scenes=2, held_out=1, sentences=2, source="libero", cells=("object",), start="shipped", train=rule
    )
    old = load_mini(SHIPPED)
    vlm = new_mini(old.config, config)
    assert vlm.config.words[: len(old.config.words)] == old.config.words
    assert min(vlm.tokenizer("salad dressing basket")) >= FIRST_WORD
    rows = len(old.word_embed.weight)
    assert (vlm.word_embed.weight[:rows] == old.word_embed.weight).all()
    assert set(vocabulary(LiberoScenes(("object",)))) <= set(vlm.config.words)
    with pytest.raises(UserError, match="has other sizes"):
        new_mini(MiniVLMConfig(width=64), config)
    pretrain(vlm, config, tmp_path / "vlm", Report(None), tmp_path)
    assert load_mini(tmp_path / "vlm").config == vlm.config
    assert len(list((tmp_path / "pictures").iterdir())) == 1
