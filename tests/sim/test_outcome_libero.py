"""Scripted LIBERO episodes that fail in a known way get the right class of failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from apt_bench.envs.base import Atom, Outcome, Scene
from apt_bench.envs.libero import LiberoEnv
from apt_bench.policies.oracle.grasps import find_grasps
from apt_bench.policies.oracle.motion import CLOSE, DOWN, OPEN, hold, move_to
from apt_bench.policies.oracle.pick_place import pick
from apt_bench.policies.oracle.planner import move_object
from apt_bench.policies.oracle.world import World
from apt_bench.suites import load_suite

pytestmark = pytest.mark.sim

TARGET, OTHER = "alphabet_soup_1", "cream_cheese_1"
UP = np.array([0.0, 0.0, 0.25])


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = LiberoEnv()
    yield env
    env.close()


def play(env: LiberoEnv, script: Callable[[World], Iterator[np.ndarray]], cell: str, budget: int) -> Outcome:
    spec = load_suite("libero_pro").select([cell], ["0"], episodes=1)[0]
    scene = env.reset(spec, privileged=True).scene
    assert scene is not None
    for _, action in zip(range(budget), script(World(scene)), strict=False):
        env.step_chunk(action[None])
    failure, events = env.tracker.finish(env.subtasks.success)
    return Outcome(env.subtasks.success, True, env.steps, "", "", failure, events)


def lift(world: World, name: str) -> Iterator[np.ndarray]:
    yield from pick(world, name, find_grasps(world, name)[0])
    yield from move_to(world, world.gripper_position + UP, DOWN, CLOSE)


def wrong_object(world: World) -> Iterator[np.ndarray]:
    yield from lift(world, OTHER)


def no_grasp(world: World) -> Iterator[np.ndarray]:
    above = world.points(TARGET)[:, 2].max()
    yield from move_to(world, np.array([*world.centre(TARGET)[:2], above + 0.10]), DOWN, OPEN)
    yield from hold(world, CLOSE, 8)  # closed fingers touch it from above
    yield from move_to(world, np.array([*world.centre(TARGET)[:2], above - 0.01]), DOWN, CLOSE)


def dropped(world: World) -> Iterator[np.ndarray]:
    yield from lift(world, TARGET)
    yield from hold(world, OPEN, 30)


def wrong_place(world: World) -> Iterator[np.ndarray]:
    grasp = find_grasps(world, TARGET)[0]
    yield from pick(world, TARGET, grasp)
    aside = grasp.position + np.array([0.0, 0.06, 0.0])
    yield from move_to(world, aside + np.array([0.0, 0.0, 0.05]), DOWN, CLOSE)
    yield from move_to(world, aside, DOWN, CLOSE, tolerance=0.005, steps=20)
    yield from hold(world, OPEN, 20)


def nothing(world: World) -> Iterator[np.ndarray]:
    yield from hold(world, OPEN, 10)


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        (nothing, "no_contact"),
        (no_grasp, "no_grasp"),
        (wrong_object, "wrong_object"),
        (dropped, "dropped"),
        (wrong_place, "wrong_place"),
    ],
)
def test_failure_class(env: LiberoEnv, script: Any, failure: str) -> None:
    outcome = play(env, script, "object_pos", 250)
    assert outcome.failure == failure, outcome.events
    if failure == "wrong_object":
        assert next(iter(outcome.events["lifted"])) == OTHER
    if failure == "dropped":
        assert outcome.events["placements"][-1]["dropped"]


def test_memorised_task(env: LiberoEnv) -> None:
    """Doing what the unperturbed task asks, under the changed instruction."""

    def script(world: World) -> Iterator[np.ndarray]:
        atom = base_goal(world.scene)
        assert atom not in world.scene.goal
        yield from move_object(world, atom, attempt=0)

    def base_goal(scene: Scene) -> Atom:
        return scene.base_goal[0]

    outcome = play(env, script, "object_task", 250)
    assert outcome.failure == "memorised_task", outcome.events
    assert outcome.events["shortcut"] is not None


def test_scene_reads_only_and_agrees_with_libero(env: LiberoEnv) -> None:
    """Its faster test of contacts gives LIBERO's results and changes nothing."""
    play(env, dropped, "object_pos", 90)
    scene, inner = env.scene, env.simulation.env
    data = scene.data

    def state() -> list[np.ndarray]:
        return [
            data.qpos.copy(),
            data.qvel.copy(),
            data.qacc_warmstart.copy(),
            np.random.get_state()[1].copy(),
        ]

    before = state()
    answers = {}
    for name, thing in scene.objects.items():
        for place in [*scene.objects, *scene.regions]:
            if thing.movable and place != name:
                for predicate in ("on", "in") if place in scene.regions else ("on",):
                    answers[Atom(predicate, (name, place))] = scene.holds(Atom(predicate, (name, place)))
    assert all(np.array_equal(a, b) for a, b in zip(before, state(), strict=True))
    assert len(answers) > 50
    for atom, answer in answers.items():
        assert answer == bool(inner._eval_predicate([atom.predicate, *atom.args])), atom
