"""Classes of failure in tabletop episodes that are scripted with the oracle's skills."""

import numpy as np
import pytest

from apt_bench.envs.base import Atom
from apt_bench.policies.oracle.grasps import find_grasps
from apt_bench.policies.oracle.motion import CLOSE, OPEN, close_gripper, hold, move_to, up
from apt_bench.policies.oracle.pick_place import pick
from apt_bench.policies.oracle.planner import move_object
from apt_bench.policies.oracle.world import World
from apt_bench.suites import load_suite

pytestmark = pytest.mark.sim


class Cast:
    """The roles of the objects in a scene. `goal`: the atom about the target."""

    def __init__(self, scene):
        self.goal = next(a for a in scene.goal if a.predicate in ("on", "in"))
        self.item, self.place = self.goal.args
        self.others = [n for n, o in scene.objects.items() if o.movable and n != self.item]
        self.elsewhere = next(n for n in scene.regions if n not in (self.place, "storage_box"))


def other_item(world, cast):
    return move(world, cast.others[-1], cast.place)


def other_place(world, cast):
    return move(world, cast.item, cast.elsewhere)


def move(world, item, place):
    yield from move_object(world, Atom("on", (item, place)), 0)


def drop(world, cast):
    """Release the item high above the table, away from everything."""
    assert (yield from grasp(world, cast.item))
    yield from move_to(world, world.gripper_position + up(0.2), world.gripper_rotation, CLOSE, steps=60)
    yield from hold(world, OPEN, 10)


def hold_on(world, cast):
    assert (yield from grasp(world, cast.item))
    while True:
        yield from hold(world, CLOSE, 10)


def miss(world, cast):
    """Touch the item's top and close the fingers above it."""
    top = np.array([*world.centre(cast.item)[:2], world.points(cast.item)[:, 2].max()])
    yield from move_to(world, top + up(0.06), world.gripper_rotation, CLOSE)
    yield from move_to(world, top - up(0.01), world.gripper_rotation, CLOSE, steps=25)
    yield from close_gripper(world)
    yield from move_to(world, top + up(0.1), world.gripper_rotation, CLOSE)


def grasp(world, item):
    return (yield from pick(world, item, find_grasps(world, item)[0]))


def nothing(world, cast):
    yield from hold(world, OPEN, 1)


def play(env, spec, script):
    observation = env.reset(spec, privileged=True)
    cast = Cast(observation.scene)
    for action in script(World(observation.scene), cast):
        if env.done:
            break
        env.step_chunk(action[None], render=False)
    if not env.done:
        env.step_chunk(np.array([[0.0] * 6 + [OPEN]] * spec.max_steps), render=False)
    return cast, env.outcome()


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        (other_item, "wrong_object"),
        (other_place, "wrong_place"),
        (drop, "dropped"),
        (hold_on, "timeout"),
        (miss, "no_grasp"),
        (nothing, "no_contact"),
    ],
)
@pytest.mark.parametrize(
    ("suite", "cell"),
    [
        ("rigid_pick_place", "uoue"),
        ("rigid_pick_place", "so_ur5e"),
        ("clutter_pick_place", "uc"),
        ("composite", "chaining"),
    ],
)
def test_class_of_failure(env, suite, cell, script, failure):
    cast, outcome = play(env, load_suite(suite).select([cell], episodes=3)[2], script)
    assert not outcome.success
    assert outcome.failure == failure, outcome.events
    events = outcome.events
    assert (cast.item in events["lifted"]) == (script in (other_place, drop, hold_on))
    assert (cast.others[-1] in events["lifted"]) == (script is other_item)
    last = {p["object"]: p for p in events["placements"]}
    if script is other_item:
        assert cast.place in last[cast.others[-1]]["within"]
    if script is other_place:
        assert cast.elsewhere in last[cast.item]["within"]
        assert not last[cast.item]["dropped"]
    if script is drop:
        assert last[cast.item]["dropped"]
    assert (cast.item in events["held"]) == (script is hold_on)
