"""The scripted expert solves the tabletop suites."""

import pytest

from apt_bench.policies.oracle import OraclePolicy
from apt_bench.policies.oracle.clutter import Push, SetAside, find_push, make_room
from apt_bench.policies.oracle.grasps import find_grasps
from apt_bench.policies.oracle.placements import find_placements
from apt_bench.policies.oracle.world import World
from apt_bench.suites import load_suite

pytestmark = pytest.mark.sim
CELLS = [
    ("rigid_pick_place", "uoue", 0.98),
    ("rigid_pick_place", "uc", 0.98),
    ("rigid_pick_place", "so_ur5e", 0.98),
    ("clutter_pick_place", "uo", 0.90),
    ("composite", "coaching_seen", 0.95),
    ("composite", "coaching_unseen", 0.95),
    ("composite", "chaining", 0.95),
]


def solve(env, spec):
    policy, observation = OraclePolicy(), env.reset(spec, privileged=True)
    policy.reset([spec])
    while not env.done:
        observation = env.step_chunk(policy.act([observation])[0], render=False)
    return env.outcome()


@pytest.mark.parametrize(("suite", "cell", "rate"), CELLS)
def test_the_oracle_solves_the_first_scene(env, suite, cell, rate):
    outcome = solve(env, load_suite(suite).select([cell], episodes=1)[0])
    assert outcome.success, (outcome.failure, outcome.events)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("suite", "cell", "rate"), CELLS)
def test_the_oracle_solves_the_cell(env, suite, cell, rate):
    outcomes = [solve(env, spec) for spec in load_suite(suite).select([cell])]
    assert sum(o.success for o in outcomes) >= rate * len(outcomes)


@pytest.mark.parametrize(
    ("task", "init", "kind"),
    [("to_bowl", 0, Push), ("to_plate", 14, SetAside)],
    ids=["push", "set aside"],
)
def test_neighbours_are_moved_where_they_leave_no_grasp(env, task, init, kind):
    suite = load_suite("clutter_pick_place")
    spec = next(s for s in suite.select(["so"], tasks=[task]) if s.key.init == init)
    scene = env.reset(spec, privileged=True).scene
    world, (item, place) = World(scene), scene.goal[0].args
    spot = find_placements(world, item, place, scene.goal[0].predicate)[0].position

    def graspable():
        return any(grasp.cost < 1 for grasp in find_grasps(world, item, spot))

    assert not graspable()
    assert isinstance(find_push(world, item, spot), kind)
    for action in make_room(world, item, spot):
        env.step_chunk(action[None], render=False)
    assert graspable()
