"""The environment with physics: conventions, determinism, success, failures, composite scoring."""

import dataclasses

import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.envs.base import Atom
from apt_bench.envs.tabletop import TabletopEnv, validation
from apt_bench.envs.tabletop.catalog import ITEMS
from apt_bench.envs.tabletop.container_shapes import LID_TRAVEL
from apt_bench.envs.tabletop.item_shapes import shape_of
from apt_bench.envs.tabletop.scene_spec import BOX, TABLE_Z
from apt_bench.policies.oracle.arm import Arm
from apt_bench.policies.oracle.motion import DOWN
from apt_bench.suites import load_suite
from apt_bench.suites.probes import expand

pytestmark = pytest.mark.sim
CELLS = [
    (name, cell.name)
    for name in ("rigid_pick_place", "clutter_pick_place", "composite")
    for cell in load_suite(name).cells
]
OPEN, CLOSED = -1.0, 1.0


def episodes(suite, cell, count=1):
    return load_suite(suite).select([cell], episodes=count)


def do(env, goal, gripper, steps=40, done_at=0.006):
    """Move the grip site to `goal` (m, world frame), as a policy would."""
    for _ in range(steps):
        if env.done:
            return
        error = np.asarray(goal) - env.data.site_xpos[env.scene.robot.grip_site]
        if np.linalg.norm(error) < done_at:
            return
        env.step_chunk(np.array([[*np.clip(20 * error, -1, 1), 0, 0, 0, gripper]]), render=False)


def wait(env, gripper, steps):
    env.step_chunk(np.array([[0, 0, 0, 0, 0, 0, gripper]] * steps, dtype=float), render=False)


def carry(env, item, to, drop=0.02, offset=(0.0, 0.0)):
    """Pick up `item`, `offset` m beside its centre, and put it down at (x, y, height above the table) in m."""
    start = env.data.xpos[env.scene.objects[item].body].copy()
    top = 2 * shape_of(ITEMS[item]).half[2]
    grip = np.array([start[0] + offset[0], start[1] + offset[1], TABLE_Z + max(top - 0.03, 0.012)])
    do(env, [*grip[:2], grip[2] + 0.1], OPEN, 60)
    do(env, grip, OPEN)
    wait(env, CLOSED, 10)
    do(env, [*grip[:2], 1.12], CLOSED)
    held = env.data.xpos[env.scene.objects[item].body] - env.data.site_xpos[env.scene.robot.grip_site]
    do(env, [to[0] - held[0], to[1] - held[1], 1.12], CLOSED, 60)
    do(env, [to[0] - held[0], to[1] - held[1], TABLE_Z + to[2] + drop - held[2]], CLOSED)
    wait(env, OPEN, 8)
    do(env, [*env.data.site_xpos[env.scene.robot.grip_site][:2], 1.15], OPEN, 20)


def spot(env, container):
    placed = next(c for c in env.scene.spec.containers if c.name == container)
    return placed.x, placed.y, 0.02


def test_observation_has_liberos_conventions(env):
    observation = env.reset(episodes("rigid_pick_place", "so")[0], ("agentview", "wrist"))
    assert {k: v.shape for k, v in observation.images.items()} == dict.fromkeys(
        ("agentview", "wrist"), (256, 256, 3)
    )
    assert observation.images["agentview"].dtype == np.uint8
    assert observation.state.dtype == np.float32
    assert observation.state[:3] == pytest.approx([-0.21, 0, 1.17], abs=0.08)  # LIBERO's home
    assert abs(observation.state[3]) == pytest.approx(np.pi, abs=0.3) or observation.state[4] != 0
    assert observation.state[6:] == pytest.approx([0.04, -0.04], abs=2e-3)
    assert observation.scene is None
    assert observation.instruction.startswith("Move the ")
    with pytest.raises(UserError, match="no camera 'agentvew'"):
        env.reset(episodes("rigid_pick_place", "so")[0], ("agentvew",))


def test_one_unit_moves_five_centimetres_along_the_world_axes(env):
    for axis in range(3):
        before = env.reset(episodes("rigid_pick_place", "so")[0]).state
        action = np.zeros((1, 7))
        action[0, axis], action[0, 6] = 0.4, OPEN
        after = env.step_chunk(np.repeat(action, 20, 0), render=False).state
        moved = after[:3] - before[:3]
        assert np.argmax(np.abs(moved)) == axis
        assert 0.08 < moved[axis] < 0.4


def test_bad_actions_are_refused(env):
    env.reset(episodes("rigid_pick_place", "so")[0])
    with pytest.raises(ValueError, match=r"shape \(n, 7\), not \(7,\)"):
        env.step_chunk(np.zeros(7))
    with pytest.raises(ValueError, match="finite"):
        env.step_chunk(np.full((1, 7), np.nan))


def test_camera_projects_objects_to_their_pixels(env):
    spec = episodes("rigid_pick_place", "so", 2)[1]
    observation = env.reset(spec, ("agentview",))
    camera = observation.cameras["agentview"]
    picture, values = env.segmentation()
    for item in env.scene.spec.items:
        centre = env.data.xpos[env.scene.objects[item.name].body] + [0, 0, shape_of(ITEMS[item.name]).half[2]]
        u, v, w = camera.K @ (camera.pose[:3, :3].T @ (centre - camera.pose[:3, 3]))
        rows, columns = np.nonzero(picture == values[item.name])
        assert abs(columns.mean() - u / w) < 6
        assert abs(rows.mean() - v / w) < 6


def test_same_spec_and_actions_give_the_same_bits(env):
    spec = episodes("rigid_pick_place", "uoue", 2)[1]
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 7))
    ends = []
    for other in (env, TabletopEnv()):
        other.reset(spec)
        image = other.step_chunk(actions[:25]) and other.frame()
        other.step_chunk(actions[25:], render=False)
        ends.append((other.outcome().start_hash, other.outcome().end_hash, image.tobytes()))
    assert ends[0] == ends[1]
    env.reset(spec)  # other chunks and other renderings, but the same physics
    for action in actions:
        env.step_chunk(action[None], render=False)
    assert env.outcome().end_hash == ends[0][1]


def test_a_disturbed_episode_pushes_the_arm_and_replays(env):
    plain = episodes("rigid_pick_place", "so")[0]
    pushed = dataclasses.replace(plain, args={**plain.args, "disturbance": 0.6})
    still = np.tile([0.0, 0, 0, 0, 0, 0, -1], (60, 1))
    hands, starts = [], set()
    for spec in (plain, pushed, pushed):
        env.reset(spec)
        starts.add(env.outcome().start_hash)
        hands.append([env.step_chunk(a[None], render=False).state[:3] for a in still])
    assert len(starts) == 1  # the same scene
    calm, first, again = np.array(hands)
    assert np.abs(calm - calm[0]).max() < 0.005
    assert np.abs(first - first[0]).max() > 0.02
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("cell", ["so", "uc"])
def test_moving_the_item_succeeds_once_it_is_released(env, cell):
    specs = [s for s in episodes("rigid_pick_place", cell, 6) if _round(s)][:2]
    assert len(specs) == 2
    for spec in specs:
        env.reset(spec)
        item, place = env.scene.spec.target, env.scene.spec.destination
        assert not env.scene.holds(Atom("on", (item, place)))
        carry(env, item, (*spot(env, place)[:2], 0.06))
        outcome = env.outcome()
        assert outcome.success, (spec.key.id, outcome.failure, outcome.events["distance"])
        assert next(iter(outcome.events["distance"].values())) < 0.11


def _round(spec):
    """Episodes whose target can be picked up without turning the hand."""
    from apt_bench.envs.tabletop.layouts import scene_spec

    scene = scene_spec(spec.args, spec.key.task, spec.key.init, spec.key.seed)
    return shape_of(ITEMS[scene.target]).round


@pytest.mark.parametrize("offset", [(0.01, 0.0), (-0.01, 0.0), (0.0, 0.01), (0.007, -0.007)])
def test_a_grasp_may_be_off_by_a_centimetre(env, offset):
    specs = [s for s in episodes("rigid_pick_place", "so", 12) if _round(s)]
    env.reset(specs[0])
    carry(env, env.scene.spec.target, (*spot(env, env.scene.spec.destination)[:2], 0.06), offset=offset)
    assert env.outcome().success


def _put(env, item, x, y, z):
    """Put an item down by writing its pose into the simulation."""
    body = env.scene.objects[item].body
    start = env.model.jnt_qposadr[env.model.body_jntadr[body]]
    env.data.qpos[start : start + 3] = x, y, TABLE_Z + z
    env.data.qvel[env.model.body_dofadr[body] :][:6] = 0


def _store(env, item):
    box = env.scene.spec.box
    _put(env, item, box.x, box.y, 0.02)
    env.data.joint(f"{BOX}_lid").qpos[:] = 0.0


def _plate(env):
    """Put the second item on its plate and return the outcome 20 control steps later."""
    plated, plate = env.scene.goal[0].args
    x, y, _ = spot(env, plate)
    _put(env, plated, x, y, 0.012)
    wait(env, OPEN, 20)
    return env.outcome()


def test_coaching_gives_the_second_instruction_when_the_first_is_done(env):
    spec = episodes("composite", "coaching_seen")[0]
    first = env.reset(spec).instruction
    (_, store, _), _ = env.scene.spec.subtasks[0].goal
    assert env.data.joint(f"{BOX}_lid").qpos[0] == pytest.approx(LID_TRAVEL, abs=0.003)
    wait(env, OPEN, 3)
    _store(env, store)
    wait(env, OPEN, 10)
    observation = env.step_chunk(np.array([[0, 0, 0, 0, 0, 0, OPEN]]), render=False)
    assert observation.instruction == spec.prompts["second"] != first
    outcome = _plate(env)
    assert outcome.success
    assert outcome.events["scores"] == {"t1": True, "t2": True, "t1_t2": True}


def test_a_language_probe_changes_the_second_instruction_too(env):
    specs = episodes("composite", "coaching_seen")[:1]
    (spec,) = (s for s in expand(specs, ["null"], specs) if s.key.prompt == "null")
    assert env.reset(spec).instruction == ""
    (_, store, _), _ = env.scene.spec.subtasks[0].goal
    wait(env, OPEN, 3)
    _store(env, store)
    wait(env, OPEN, 10)
    observation = env.step_chunk(np.array([[0, 0, 0, 0, 0, 0, OPEN]]), render=False)
    assert env.scene.goal == env.scene.goals[1]  # the goal of the second instruction
    assert observation.instruction == ""


def test_coaching_gives_the_second_instruction_when_its_share_of_the_budget_is_spent(env):
    spec = episodes("composite", "coaching_unseen")[0]
    env.reset(spec)
    wait(env, OPEN, spec.max_steps // 2 - 1)
    assert env.step_chunk(np.zeros((1, 7)), render=False).instruction == spec.prompts["second"]
    outcome = _plate(env)
    assert outcome.done
    assert not outcome.success
    assert outcome.steps < spec.max_steps
    with pytest.raises(ValueError, match="over"):
        wait(env, OPEN, 1)
    assert outcome.events["scores"] == {"t1": False, "t2": True, "t1_t2": False}


def test_chaining_scores_both_subtasks_of_one_instruction(env):
    spec = episodes("composite", "chaining")[0]
    sentence = env.reset(spec).instruction
    assert ", then place the " in sentence
    plated, plate = next(a.args for a in env.scene.goal if a.predicate == "on")
    x, y, _ = spot(env, plate)
    _put(env, plated, x, y, 0.012)  # the second subtask first: the order is free
    wait(env, OPEN, spec.max_steps)
    outcome = env.outcome()
    assert outcome.events["scores"] == {"t1": False, "t2": True, "t1_t2": False}
    assert not outcome.success


def begin(env, spec):
    """The problems of a scene, by `validation` and by the arm's inverse kinematics."""
    problems = validation.scene_problems(env, spec)
    scene = env.scene
    arm, body = Arm(scene), [scene.objects[n].body for n in {a for g in scene.all_goals for a in g.args}]
    things = [g for o in scene.objects.values() for g in o.geoms]
    for position in env.data.xpos[body] + [0, 0, 0.04]:
        if (cost := arm.cost(position, DOWN, ignore=things)) >= 1:
            problems.append(("reach", f"the hand cannot be at {position.round(3)}: {cost:.2f}"))
    return problems


@pytest.mark.parametrize(("suite", "cell"), CELLS)
def test_scenes_start_without_problems(env, suite, cell):
    for spec in episodes(suite, cell, 8):
        assert begin(env, spec) == [], spec.key.id


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("suite", "cell"), CELLS)
def test_a_thousand_scenes_start_without_problems(env, suite, cell):
    specs = episodes(suite, cell, 500)
    assert len(specs) == 1000
    assert {s.key.id: p for s in specs if (p := begin(env, s))} == {}


def test_the_other_arm_moves_with_the_same_actions(env):
    spec = episodes("rigid_pick_place", "so_ur5e")[0]
    before = env.reset(spec).state
    assert before[:3] == pytest.approx([-0.21, 0, 1.17], abs=0.1)
    assert before[6:] == pytest.approx([0.0425, -0.0425], abs=5e-3)
    after = env.step_chunk(np.array([[0.3, 0, -0.3, 0, 0, 0, CLOSED]] * 20), render=False).state
    assert after[0] - before[0] > 0.05
    assert before[2] - after[2] > 0.05
    assert after[6] < 0.02
