"""Scenes as data: the splits are disjoint, and scenes are the same on every machine. No simulator."""

import collections
import dataclasses

import pytest

from apt_bench.core.errors import UserError
from apt_bench.envs.tabletop import layouts, scene_spec, validation
from apt_bench.envs.tabletop.catalog import ITEMS, PLATED, STORED, conflict, items
from apt_bench.envs.tabletop.container_shapes import BOX_INSIDE
from apt_bench.envs.tabletop.fingerprints import FINGERPRINTS
from apt_bench.envs.tabletop.item_shapes import shape_of
from apt_bench.envs.tabletop.layouts import ambiguous
from apt_bench.envs.tabletop.tasks import cell_tasks
from apt_bench.suites import Cell, load_suite

SUITES = ("rigid_pick_place", "clutter_pick_place", "composite")
CELLS = [(name, cell.name) for name in SUITES for cell in load_suite(name).cells]


def test_seen_and_unseen_share_nothing():
    assert validation.overlaps() == []
    assert len(items("seen", target=True)) >= 20
    assert len(items("unseen", target=True)) >= 8


def test_an_overlap_of_the_splits_is_found(monkeypatch):
    twin = dataclasses.replace(ITEMS["blue_ball"], shape="cube", color=ITEMS["red_cube"].color)
    monkeypatch.setitem(ITEMS, "blue_ball", twin)
    assert "blue_ball looks like red_cube" in validation.overlaps()
    monkeypatch.setitem(ITEMS, "blue_ball", dataclasses.replace(twin, color=(0, 0, 0), aliases=("apple",)))
    assert "blue_ball is called like apple" in validation.overlaps()


def test_an_alias_fits_one_object_of_a_scene():
    assert conflict(ITEMS["lime"], ITEMS["pear"])  # "green fruit" fits both
    assert conflict(ITEMS["banana"], ITEMS["lemon"])
    assert not conflict(ITEMS["apple"], ITEMS["red_cube"])


@pytest.mark.parametrize(("suite", "cell"), CELLS)
def test_fingerprints_are_the_same_on_every_machine(suite, cell):
    loaded = load_suite(suite)
    assert validation.fingerprint(loaded, loaded.cell(cell)) == FINGERPRINTS[suite][cell]


@pytest.mark.parametrize(("suite", "cell"), CELLS)
def test_specs_match_the_arguments_of_their_cell(suite, cell):
    loaded = load_suite(suite)
    args = loaded.cell(cell).args
    for episode in loaded.select([cell], episodes=15):
        spec = layouts.scene_spec(episode.args, episode.key.task, episode.key.init, episode.key.seed)
        assert validation.spec_problems(spec, dict(args)) == []
        assert episode.prompt == spec.instructions[0]
        assert len(spec.items) == (3 if spec.box else 4)
        assert len(spec.containers) == 2


def test_another_seed_or_episode_gives_another_scene():
    args = load_suite("rigid_pick_place").cell("so").args
    hashes = {layouts.scene_spec(args, "to_plate", i, seed).hash for i in range(5) for seed in (7, 8)}
    assert len(hashes) == 10


def test_every_target_comes_equally_often():
    args = load_suite("rigid_pick_place").cell("uo").args
    count = collections.Counter(layouts.scene_spec(args, "to_plate", i, 7).target for i in range(30))
    assert set(count.values()) == {3}
    assert set(count) == {i.name for i in items("unseen", target=True)}


def test_evaluation_scenes_have_a_seen_target_as_distractor():
    args = load_suite("rigid_pick_place").cell("uo").args
    for init in range(20):
        spec = layouts.scene_spec(args, "to_bowl", init, 7)
        others = [ITEMS[p.name] for p in spec.items if p.name != spec.target]
        assert sum(o.target and o.split == "seen" for o in others) == 1


@pytest.mark.parametrize(
    ("cell", "share"), [("train", 0.2), ("train_redundant", 0.0), ("train_ambiguous", 1.0)]
)
def test_training_language_is_as_redundant_as_stated(cell, share):
    args, found = load_suite("rigid_pick_place").cell(cell).args, 0
    for init in range(300):
        spec = layouts.scene_spec(args, "to_plate", init, 7)
        askable = sum(ITEMS[p.name].target for p in spec.items)
        places = {p.name for p in spec.containers} - {"tray"}
        assert (
            (askable > 1)
            == (len(places) > 1)
            == ambiguous(args, scene_spec.scene_key(args, "to_plate", init, 7))
        )
        found += askable > 1
    assert found / 300 == pytest.approx(share, abs=0.06)


def test_coaching_and_chaining_share_their_scenes():
    suite = load_suite("composite")
    for a, b in zip(
        suite.select(["coaching_seen"], episodes=3), suite.select(["chaining"], episodes=3), strict=True
    ):
        first, second = (layouts.scene_spec(e.args, e.key.task, e.key.init, e.key.seed) for e in (a, b))
        assert (first.items, first.box, first.view) == (second.items, second.box, second.view)
        assert first.subtasks == second.subtasks
        assert (len(first.instructions), len(second.instructions)) == (2, 1)
        assert set(a.prompts) == {"text", "second"}


def test_stored_items_fit_into_the_box():
    for name in (*STORED, *PLATED):
        half = shape_of(ITEMS[name]).half
        assert half[0] < BOX_INSIDE[0]
        assert half[1] < BOX_INSIDE[1]
        assert 2 * half[2] < BOX_INSIDE[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"layout": "tabel"}, "no layout 'tabel'. Did you mean 'table'?"),
        ({"layout": "table", "items": "unsen"}, "no items 'unsen'. Did you mean 'unseen'?"),
        ({"layout": "table", "itms": "seen"}, "unknown argument 'itms'. Did you mean 'items'?"),
        ({"layout": "table", "split": "train"}, "ambiguity between 0 and 1, not None"),
        ({"items": "seen"}, "args need a layout"),
    ],
)
def test_wrong_arguments_are_named(args, message):
    with pytest.raises(UserError) as caught:
        cell_tasks(Cell("mine", "Mine", 10, "text", args))
    assert message in str(caught.value)
