"""Drawn layouts of LIBERO: what the sentence says holds, everything rests, and no layout is one of LIBERO-PRO's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apt_bench.envs.base import Scene
from apt_bench.envs.libero import LiberoEnv
from apt_bench.envs.libero.drawn_layouts import (
    BESIDE_PLATE,
    DRAWER_FRONT,
    DRAWER_REACH,
    FIXTURE_SHIFT,
    KNOB,
    OPEN_DRAWER,
    PLACES,
    STOVE_FRONT,
)
from apt_bench.envs.libero.drawn_tasks import RELATIONS
from apt_bench.envs.libero.tasks import bddl_path, load_inits, manifest
from apt_bench.policies.preprocessing import shrink
from apt_bench.suites import EpisodeSpec, load_suite

pytestmark = pytest.mark.sim

APART = 0.03
"""Least distance in m, for at least one object, between a drawn layout and every initial state of evaluation."""

EVALUATED = {
    "libero_object": ("libero_object", "libero_object_swap", "libero_object_task"),
    "libero_spatial": ("libero_spatial", "libero_spatial_swap", "libero_spatial_task"),
    "libero_goal": ("libero_goal", "libero_goal_swap", "libero_goal_task"),
    "libero_10": ("libero_10", "libero_10_swap", "libero_10_task"),
}


@pytest.fixture(scope="module")
def env() -> LiberoEnv:
    return LiberoEnv()


def drawn(cell: str, tasks: int, layouts: int) -> list[EpisodeSpec]:
    """The first layouts of every `tasks`-th task of a cell; of LIBERO-Long, of one task per scene."""
    specs = load_suite("libero_drawn").select([cell], episodes=layouts)
    if cell == "long":  # the first task of each scene
        first = {s.args["layout"]: s.key.task for s in reversed(specs)}
        return [s for s in specs if s.key.task in first.values()]
    return [s for n, s in enumerate(specs) if n // layouts % tasks == 0]


def places(scene: Scene) -> dict[str, np.ndarray]:
    return {n: scene.data.xpos[o.body].copy() for n, o in scene.objects.items() if o.movable}


@pytest.mark.parametrize(
    ("cell", "index"), [("object", 3), ("spatial", 3), ("goal", 3), *(("long", n) for n in range(9))]
)
def test_a_layout_rests_and_is_drawn_from_the_episodes_seed(env: LiberoEnv, cell: str, index: int) -> None:
    spec = drawn(cell, 7, 1)[index]
    env.reset(spec)
    first = places(env.scene)
    hold = np.array([[0, 0, 0, 0, 0, 0, -1.0]] * 10)
    env.step_chunk(hold, render=False)
    moved = {n: float(np.linalg.norm(p - first[n])) for n, p in places(env.scene).items()}
    assert max(moved.values()) < 0.002, moved
    assert not env.outcome().success
    env.reset(spec)
    again = places(env.scene)
    assert all(np.array_equal(again[n], first[n]) for n in first)
    env.reset(dataclasses.replace(spec, key=dataclasses.replace(spec.key, init=1)))
    other = places(env.scene)
    assert np.mean([np.linalg.norm(other[n] - first[n]) for n in first]) > 0.03


def test_nothing_stands_where_a_drawer_opens_or_where_things_are_pushed_to(env: LiberoEnv) -> None:
    specs = [s for s in drawn("goal", 1, 3) if s.args["wanted"]["clear"]]
    assert {c for s in specs for c in s.args["wanted"]["clear"]} == {"wooden_cabinet_1", "flat_stove_1"}
    for spec in specs:
        env.reset(spec)
        cabinet = env.scene.data.xpos[env.scene.objects["wooden_cabinet_1"].body][:2]
        circles = {"wooden_cabinet_1": (cabinet + DRAWER_FRONT, DRAWER_REACH), "flat_stove_1": STOVE_FRONT}
        for name in spec.args["wanted"]["clear"]:
            centre, radius = circles[name]
            assert all(np.linalg.norm(p[:2] - centre) > radius for p in places(env.scene).values()), spec.id


def test_fixtures_of_libero_goal_move_and_nothing_touches(env: LiberoEnv) -> None:
    """Cabinet and rack are near their places, or near each other's; robosuite's own places vary by 1 cm."""
    usual = {
        "wooden_cabinet_1": (0.03, -0.24),
        "wine_rack_1": (-0.26, -0.26),
        "flat_stove_1": (-0.41, 0.21),
    }
    where = []
    for spec in drawn("goal", 2, 2):
        env.reset(spec)
        scene = env.scene
        where.append({n: scene.data.xpos[scene.objects[n].body][:2].copy() for n in usual})
        movable = {g for o in scene.objects.values() if o.movable for g in o.geoms}
        fixed = {g for n in usual for g in scene.objects[n].geoms}
        pairs = scene.data.contact.geom
        assert not any((a in movable and b in fixed) or (a in fixed and b in movable) for a, b in pairs), (
            spec.id
        )
    near = FIXTURE_SHIFT + 0.011
    exchanged = []
    for found in where:
        assert np.abs(found["flat_stove_1"] - usual["flat_stove_1"]).max() < near
        cabinet, rack = found["wooden_cabinet_1"], found["wine_rack_1"]
        exchanged.append(bool(cabinet[0] < rack[0]))
        for name, place in (("wooden_cabinet_1", cabinet), ("wine_rack_1", rack)):
            other = {"wooden_cabinet_1": "wine_rack_1", "wine_rack_1": "wooden_cabinet_1"}[name]
            assert np.abs(place - usual[other if exchanged[-1] else name]).max() < near
    assert 0.2 < np.mean(exchanged) < 0.9
    (control,) = load_suite("libero").select(["goal"], ["0"], episodes=1)
    env.reset(control)
    for name, place in usual.items():
        assert np.abs(env.scene.data.xpos[env.scene.objects[name].body][:2] - place).max() < 0.011


def test_a_draft_is_the_same_image_without_smooth_edges(env: LiberoEnv) -> None:
    spec = drawn("object", 1, 1)[0]
    whole = env.reset(spec, ("agentview",)).images["agentview"]
    assert env.simulation is not None
    env.simulation.draft = True
    env.step_chunk(np.array([[0, 0, 0, 0, 0, 0, -1.0]]), render=False)
    draft = env.frame()
    env.simulation.draft = False
    same = env.frame()
    small = [shrink(image, 128).astype(float) for image in (whole, draft, same)]
    assert 0 < np.abs(small[1] - small[2]).mean() < 1.5
    assert np.abs(small[0] - small[2]).mean() < 0.5


def test_every_relation_has_a_place() -> None:
    assert set(PLACES) == set(RELATIONS)


def test_bowls_stand_where_the_sentence_says(env: LiberoEnv) -> None:
    for spec in drawn("spatial", 9, 2):
        env.reset(spec)
        scene, where = env.scene, places(env.scene)
        bowl, other = (where[f"akita_black_bowl_{k}"] for k in (1, 2))
        assert scene.goal[0].args == ("akita_black_bowl_1", "plate_1")
        relation = spec.args["wanted"]["target"]
        plate, ramekin, cookies = (
            where[n] for n in ("plate_1", "glazed_rim_porcelain_ramekin_1", "cookies_1")
        )
        anchors = {"plate": plate, "ramekin": ramekin, "cookie box": cookies}
        if relation.startswith("next to"):
            anchor = anchors[relation.removeprefix("next to the ")]
            assert np.linalg.norm((bowl - anchor)[:2]) < 0.20, spec.key.task
            assert bowl[2] < 0.91
        elif relation in ("on the cookie box", "on the ramekin"):
            anchor = anchors[relation.removeprefix("on the ")]
            assert np.linalg.norm((bowl - anchor)[:2]) < 0.04, spec.key.task
            assert bowl[2] > 0.91
        elif relation.startswith("between"):
            along = (ramekin - plate)[:2] / np.linalg.norm((ramekin - plate)[:2])
            share = (bowl - plate)[:2] @ along / np.linalg.norm((ramekin - plate)[:2])
            assert 0.25 < share < 0.75
        elif relation == "on the stove":
            assert (
                np.linalg.norm(
                    bowl[:2] - scene.data.site_xpos[scene.regions["flat_stove_1_cook_region"].site][:2]
                )
                < 0.05
            )
        elif relation == "on the wooden cabinet":
            assert bowl[2] > 1.1
        elif relation.startswith("in the top drawer"):
            assert 1.04 < bowl[2] < 1.1
        assert np.linalg.norm((bowl - other)[:2]) > 0.08


def test_scenes_of_libero_long_need_the_sentence() -> None:
    tasks = load_suite("libero_drawn").select(["long"], episodes=1)
    assert len(tasks) == 60
    goals: dict[str, set[str]] = {}
    for spec in tasks:
        goals.setdefault(spec.args["layout"], set()).add(str(spec.args["goal"]))
    assert len(goals) == 9
    assert all(len(found) >= 3 for found in goals.values())
    assert len({(spec.args["layout"], spec.prompt) for spec in tasks}) == len(tasks)


def test_doors_and_regions_of_libero_long_are_free(env: LiberoEnv) -> None:
    """Left and right are as the sentences say, and what is placed first is the only thing in a clear circle."""
    clear = {
        "kitchen_scene3": (KNOB,),
        "kitchen_scene4": (OPEN_DRAWER,),
        "living_room_scene6": BESIDE_PLATE,
    }
    pairs = {"living_room_scene5": ("plate_1", "plate_2"), "kitchen_scene8": ("moka_pot_2", "moka_pot_1")}
    checked = set()
    for spec in drawn("long", 1, 3):
        kind = spec.args["layout"]
        if kind not in {*clear, *pairs, "kitchen_scene6"}:
            continue
        env.reset(spec)
        where = places(env.scene)
        for centre, radius in clear.get(kind, ()):
            others = [p for n, p in where.items() if n not in spec.args["wanted"].get("first", ())]
            assert all(np.linalg.norm(p[:2] - centre) > radius for p in others), spec.id
        if kind in pairs:
            left, right = (where[n] for n in pairs[kind])
            assert left[1] + 0.05 < right[1], spec.id
        if kind == "kitchen_scene6":
            assert all(p[1] < 0 for p in where.values()), spec.id  # the door swings at y > 0
        checked.add(kind)
    assert checked == {*clear, *pairs, "kitchen_scene6"}


@pytest.mark.parametrize("cell", ["object", "spatial", "goal", "long"])
def test_no_layout_is_one_that_is_evaluated(env: LiberoEnv, cell: str) -> None:
    """Also for the pictures of the mini VLM, which are drawn in the same way."""
    for spec in drawn(cell, 10, 4):
        env.reset(spec)
        drawn_now = places(env.scene)
        model = env.scene.model
        address = {
            n: 1 + int(model.jnt_qposadr[model.body_jntadr[env.scene.objects[n].body]]) for n in drawn_now
        }
        for benchmark in EVALUATED[spec.args["benchmark"]]:
            for task in manifest()["benchmarks"][benchmark]["tasks"]:
                if task["group"] != spec.group:
                    continue  # another scene, with other objects
                assert bddl_path(benchmark, task["name"]).is_file()
                states = load_inits(benchmark, task["name"])
                apart = [
                    np.linalg.norm(states[:, a : a + 2] - drawn_now[n][:2], axis=1)
                    for n, a in address.items()
                ]
                nearest = np.max(apart, axis=0).min()
                assert nearest > APART, (benchmark, task["name"], spec.id)
