"""The contract of an environment: steps, budget, observations, camera geometry, the Gymnasium interface."""

from __future__ import annotations

import subprocess
import sys

import mujoco
import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.envs.base import AGENTVIEW, WRIST
from apt_bench.envs.libero import LiberoEnv
from apt_bench.suites import EpisodeSpec, load_suite

pytestmark = pytest.mark.sim


def spec(cell: str = "object_pos", task: str = "0", suite: str = "libero_pro") -> EpisodeSpec:
    return load_suite(suite).select(cells=[cell], tasks=[task], episodes=1)[0]


@pytest.fixture(scope="module")
def env():
    env = LiberoEnv()
    yield env
    env.close()


def test_budget_excludes_settling_and_cuts_the_chunk(env: LiberoEnv) -> None:
    import dataclasses

    short = dataclasses.replace(spec(), max_steps=7)
    first = env.reset(short)
    assert first.step == 0
    assert first.images == {}
    assert env.simulation.data.time == pytest.approx(10 * 25 * 0.002)  # ten settle steps of 25 substeps
    env.step_chunk(np.zeros((5, 7)))
    assert not env.outcome().done
    env.step_chunk(np.zeros((5, 7)))
    outcome = env.outcome()
    assert (outcome.steps, outcome.done, outcome.success) == (7, True, False)
    assert outcome.failure == "no_contact"
    with pytest.raises(ValueError, match="over"):
        env.step_chunk(np.zeros((1, 7)))


@pytest.mark.parametrize(
    "actions", [np.full((2, 7), np.nan), np.zeros((2, 6)), np.zeros(7), np.zeros((0, 7))]
)
def test_bad_actions_are_refused(env: LiberoEnv, actions: np.ndarray) -> None:
    env.reset(spec())
    with pytest.raises(ValueError, match="actions"):
        env.step_chunk(actions)


def test_actions_are_clipped_and_the_gripper_closes_on_plus_one(env: LiberoEnv) -> None:
    states = []
    for scale in (1.0, 5.0):
        env.reset(spec())
        states.append(env.step_chunk(np.full((6, 7), scale)).state)
    assert np.array_equal(*states)
    opened = env.reset(spec()).state[6]
    assert opened > 0.035
    assert states[0][6] < opened - 0.015


def test_unknown_camera_and_initial_state_are_named(env: LiberoEnv) -> None:
    import dataclasses

    with pytest.raises(UserError, match="agentview"):
        env.reset(spec(), cameras=("agent_view",))
    far = dataclasses.replace(spec(), key=dataclasses.replace(spec().key, init=50))
    with pytest.raises(UserError, match=r"Use 0 to 49"):
        env.reset(far)


def test_scene_only_for_the_privileged(env: LiberoEnv) -> None:
    assert env.reset(spec()).scene is None
    scene = env.reset(spec(), privileged=True).scene
    assert scene is not None
    assert not all(scene.holds(atom) for atom in scene.goal)


def test_frame_does_not_touch_the_episode(env: LiberoEnv) -> None:
    ends = []
    for film in (False, True):
        env.reset(spec())
        for _ in range(3):
            env.step_chunk(np.full((2, 7), 0.3))
            if film:
                assert env.frame(size=64).std() > 10
        ends.append(env.outcome().end_hash)
    assert ends[0] == ends[1]


@pytest.mark.parametrize("camera", [AGENTVIEW, WRIST])
def test_camera_geometry_points_at_the_delivered_image(env: LiberoEnv, camera: str) -> None:
    """Objects are in the (mirrored) image at the pixels that K and the pose give."""
    observation = env.reset(spec("long_task", "8"), cameras=(AGENTVIEW, WRIST))
    view = observation.cameras[camera]
    renderer, data = env.simulation.renderer, env.simulation.data
    for flag in (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR):
        renderer.scene.flags[flag] = 1
    try:
        pixels = env.frame(camera).astype(int)
    finally:
        for flag in (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR):
            renderer.scene.flags[flag] = 0
    ids = pixels @ [1, 256, 65536]
    for name in ("moka_pot_1", "moka_pot_2"):
        body = env.scene.objects[name]
        segments = [
            geom.segid + 1
            for geom in renderer.scene.geoms[: renderer.scene.ngeom]
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.objid in body.geoms
        ]
        rows, columns = np.nonzero(np.isin(ids, segments))
        whole = min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < 255
        if not whole:
            continue  # cut by the image's edge
        u, v, depth = view.K @ (view.pose[:3, :3].T @ (data.xpos[body.body] - view.pose[:3, 3]))
        assert depth > 0
        assert abs(u / depth - columns.mean()) < 6
        assert abs(v / depth - rows.mean()) < 6
        break
    else:
        assert camera == WRIST, "no whole thing in view"


def test_sentences_and_goals_are_what_liberos_own_reader_finds() -> None:
    from apt_bench.envs.libero.bddl import read_bddl
    from apt_bench.envs.libero.imports import import_libero
    from apt_bench.envs.libero.tasks import bddl_path

    import_libero()
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    for suite in map(load_suite, ("libero", "libero_pro")):
        for cell in suite.cells:
            for task in suite.cell_tasks(cell):
                path = bddl_path(task.args["benchmark"], task.name)
                ours, theirs = read_bddl(path), robosuite_parse_problem(str(path))
                assert task.prompts["bddl"] == " ".join(theirs["language_instruction"])
                assert [[a.predicate, *a.args] for a in ours.goal] == theirs["goal_state"]
                assert list(ours.objects_of_interest) == theirs["obj_of_interest"]


def test_premise_names_the_thrown_bowl_and_nothing_in_a_sound_scene(env: LiberoEnv) -> None:
    from apt_bench.envs.libero.validation import premise

    suite = load_suite("libero_pro")
    thrown = suite.select(cells=["spatial_pos"], tasks=["3"], episodes=13)[12]
    assert [kind for kind, _ in premise(env, thrown)] == ["ejected_goal_object", "premise"]
    assert thrown.flags == ("ejected_goal_object",)
    assert premise(env, spec()) == []


def test_two_environments_on_the_same_scene_do_not_disturb_each_other(env: LiberoEnv) -> None:
    def step(one: LiberoEnv, sign: float) -> None:
        ends[one].append(one.step_chunk(np.full((3, 7), sign * 0.3)).images[WRIST])

    ends: dict[LiberoEnv, list[np.ndarray]] = {}
    other = LiberoEnv()
    hashes = []
    for order in (env, other), (env,), (other,):  # both in turns, then each alone
        ends = {one: [one.reset(spec(), (WRIST,)).images[WRIST]] for one in order}
        for _ in range(3):
            for one in order:
                step(one, 1.0 if one is env else -1.0)
        hashes.append({one: (one.outcome().end_hash, np.stack(ends[one]).tobytes()) for one in order})
    other.close()
    assert hashes[0] == hashes[1] | hashes[2]
    assert hashes[0][env] != hashes[0][other]


@pytest.mark.slow  # tests/envs/test_gym_ids.py checks the ids of all suites
def test_gymnasium_checks_a_registered_id() -> None:
    import gymnasium
    from gymnasium.utils.env_checker import check_env

    import apt_bench.envs.gym as gym_envs

    assert "apt_bench/libero_pro-spatial_task-v1" in gym_envs.IDS
    made = gymnasium.make("apt_bench/libero_pro-object_pos-v1", cameras=(WRIST,), disable_env_checker=True)
    check_env(made.unwrapped, skip_render_check=True)
    first, info = made.reset(options={"task": 2, "init": 1})
    assert "/init1/" in info["episode"]
    assert "salad dressing" in first["instruction"]
    made.close()


def test_no_gl_and_no_log_without_cameras() -> None:
    """A whole episode's start in a process in which no GL library may be loaded, and nothing is printed."""
    code = """
import os, sys
os.environ["MUJOCO_GL"] = "egl"  # asked for, but not needed
sys.modules["cv2"] = None  # OpenCV's wheel needs libGL
from apt_bench.suites import load_suite
from apt_bench.envs.libero import cell_tasks, checks
suite = load_suite("libero_pro")
spec = suite.select(cells=["object_pos"], tasks=["1"], episodes=1)[0]
assert not [f for f in checks(suite) if f.level == "error"]
assert not {"mujoco", "robosuite", "libero"} & set(sys.modules), "listing tasks imports a simulator"
import numpy as np
from apt_bench.envs.libero import LiberoEnv
env = LiberoEnv()
env.reset(spec)
env.step_chunk(np.zeros((2, 7)))
maps = open("/proc/self/maps").read()
assert "libEGL" not in maps and "libOSMesa" not in maps and "libGL" not in maps
import logging
assert not [h for h in logging.getLogger("robosuite_logs").handlers if isinstance(h, logging.FileHandler)]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
