"""The functions that a model's code may call: what they say, accept and refuse."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from apt_bench.core.errors import UserError
from apt_bench.envs.base import Env, Observation, action_towards
from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.policies.code_as_policies.api import Api, ApiError, Tier
from apt_bench.policies.code_as_policies.perception import OracleSegmenter
from apt_bench.suites import load_suite

SPEC = load_suite("rigid_pick_place").select(episodes=1)[0]
MOTIONS = ("goto_pose", "open_gripper", "close_gripper")
DOWN = [0.0, 1.0, 0.0, 0.0]


def api_of(tier: Tier) -> Api:
    return Api(tier, OracleSegmenter() if tier == "perception" else None)


class Session:
    """Calls functions in an episode, as the policy does."""

    def __init__(self, env: Env, tier: Tier) -> None:
        self.env, self.api = env, api_of(tier)
        self.seen = env.reset(SPEC, self.api.cameras, self.api.privileged)
        self.api.reset(SPEC)
        self.api.observe(self.seen)

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> Any:
        motion = self.api.call(name, args, kwargs)
        try:
            chunk = next(motion)
            while True:
                for i, row in enumerate(chunk):
                    action = np.clip(action_towards(row, self.seen.state), -1, 1)
                    self.seen = self.env.step_chunk(action[None], render=i == len(chunk) - 1)
                self.api.observe(self.seen)
                chunk = motion.send(self.seen)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def env() -> Iterator[Env]:
    env = TabletopEnv()
    yield env
    env.close()


@pytest.fixture(scope="module")
def privileged(env: Env) -> Session:
    return Session(env, "privileged")


# --- the text that the model reads --------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["privileged", "perception"])
def test_the_description_is_python_with_a_docstring_for_every_function(tier: Tier) -> None:
    api = api_of(tier)
    functions = ast.parse(api.describe()).body
    assert [f.name for f in functions if isinstance(f, ast.FunctionDef)] == list(api.names)
    for function in functions:
        assert isinstance(function, ast.FunctionDef)
        assert len(ast.get_docstring(function) or "") > 40, function.name
        assert function.returns is not None
    assert set(MOTIONS) <= set(api.names)


def test_the_tiers_differ_in_what_they_read() -> None:
    privileged, perception = api_of("privileged"), api_of("perception")
    assert (privileged.cameras, privileged.privileged) == ((), True)
    assert perception.cameras == ("agentview", "wrist", "agentview_depth", "wrist_depth")
    assert perception.privileged  # because of oracle-seg
    assert "get_object_pose" not in perception.names
    assert "segment" not in privileged.names
    segmenter = OracleSegmenter()
    segmenter.privileged = False
    assert not Api("perception", segmenter).privileged


# --- wrong calls --------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "unknown function": ("grasp", (), "There is no function 'grasp'"),
    "private method": ("_reset", (), "There is no function '_reset'"),
    "missing argument": ("goto_pose", ([0, 0, 1],), r"missing.*'quaternion_wxyz'.*goto_pose\(position"),
    "too many": ("open_gripper", (1,), r"too many.*open_gripper\(\)"),
    "short position": ("goto_pose", ([0, 1], DOWN), r"position has the shape \(2,\)"),
    "text": ("goto_pose", ("here", DOWN), "position must be numbers"),
    "nothing": ("goto_pose", (None, DOWN), "position must be numbers"),
    "ragged": ("goto_pose", ([0, [1, 2], 3], DOWN), "position must be numbers"),
    "NaN": ("goto_pose", ([0, np.nan, 1], DOWN), "position must be finite"),
    "far": ("goto_pose", ([0, 0, 1e6], DOWN), "out of reach"),
    "no rotation": ("goto_pose", ([0, 0, 1], [0, 0, 0, 0]), "is no rotation"),
    "approach": ("goto_pose", ([0, 0, 1], DOWN, -0.1), "from 0 to 0.5"),
    "object": ("get_object_pose", ("can_7",), "There is no object 'can_7'"),
    "no name": ("get_object_size", (3,), "There is no object 3"),
    "a fixture": ("sample_grasp_pose", ("plate",), "cannot be moved"),
}


@pytest.mark.parametrize(("name", "args", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_call_is_an_error_that_the_code_sees(
    privileged: Session, name: str, args: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ApiError, match=message):
        privileged(name, *args)


SEEN_WRONG: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "camera": ("segment", ("can", "front"), "'agentview' or 'wrist'"),
    "camera list": ("segment", ("can", ["wrist"]), "'agentview' or 'wrist'"),
    "long text": ("segment", ("x" * 1000,), "1 to 200 characters"),
    "no text": ("segment", (5,), "1 to 200 characters"),
    "mask of numbers": ("points_of", (np.zeros((256, 256)),), "must be bool"),
    "mask of another size": ("points_of", (np.ones((2, 2), bool),), r"must be bool \(256, 256\)"),
    "empty mask": ("points_of", (np.zeros((256, 256), bool),), "is empty"),
    "few points": ("oriented_box", (np.zeros((3, 3)),), "N from 10"),
    "flat points": ("sample_grasp_pose", (np.zeros(30),), r"must be \(N, 3\)"),
    "endless points": ("oriented_box", (np.full((20, 3), np.inf),), "finite"),
}


def test_a_wrong_call_of_perception_is_an_error_that_the_code_sees(env: Env) -> None:
    session = Session(env, "perception")
    for name, args, message in SEEN_WRONG.values():
        with pytest.raises(ApiError, match=message):
            session(name, *args)
    for points in (np.zeros((20, 3)), np.linspace([0, 0, 0], [1, 1, 1], 20)):  # no error: a point, a line
        assert np.isfinite(session("oriented_box", points)["extent"]).all()


# --- what they return ---------------------------------------------------------------------------------------------


def test_positions_and_sizes_are_those_of_the_visible_geometry(env: Env) -> None:
    session = Session(env, "privileged")
    scene = session.seen.scene
    assert scene is not None
    names = session("get_object_names")
    assert set(scene.objects) <= set(names)
    for name in scene.objects:
        position, quaternion = session("get_object_pose", name)
        size = session("get_object_size", name)
        body = scene.data.xpos[scene.objects[name].body]
        assert np.linalg.norm((position - body)[:2]) < 0.05
        assert (size > 0.005).all()
        assert (size < 0.4).all()
        assert abs(Rotation.from_quat(quaternion[[1, 2, 3, 0]]).magnitude()) <= np.pi
        assert abs(position[2] - size[2] / 2 - 0.9) < 0.02  # it stands on the table


def test_the_pose_of_the_gripper_is_that_of_the_state(privileged: Session) -> None:
    position, quaternion = privileged("get_gripper_pose")
    np.testing.assert_allclose(position, privileged.seen.state[:3])
    turn = (
        Rotation.from_quat(quaternion[[1, 2, 3, 0]]) * Rotation.from_rotvec(privileged.seen.state[3:6]).inv()
    )
    assert turn.magnitude() < 1e-5
    assert quaternion[np.abs(quaternion).argmax()] > 0
    assert privileged("get_gripper_opening") == pytest.approx(0.08, abs=0.005)


def test_a_grasp_holds_the_object(env: Env) -> None:
    session = Session(env, "privileged")
    scene = session.seen.scene
    assert scene is not None
    name = next(a.args[0] for a in scene.goal)
    position, quaternion = session("sample_grasp_pose", name)
    before = session("get_object_pose", name)[0][2]
    session("goto_pose", position, quaternion, z_approach=0.1)
    session("close_gripper")
    assert 0.003 < session("get_gripper_opening") < 0.078
    session("goto_pose", position + np.array([0, 0, 0.12]), quaternion)
    assert session("get_object_pose", name)[0][2] - before > 0.08


def test_the_same_grasp_from_images(env: Env) -> None:
    session = Session(env, "perception")
    scene = session.seen.scene
    assert scene is not None
    name = next(a.args[0] for a in scene.goal)
    (found,) = session("segment", name.replace("_", " "))
    points = session("points_of", found["mask"])
    position, quaternion = session("sample_grasp_pose", points)
    thing = scene.data.xpos[scene.objects[name].body]
    before = thing[2]
    assert np.linalg.norm((session("oriented_box", points)["center"] - thing)[:2]) < 0.02
    session("goto_pose", position, quaternion, z_approach=0.1)
    session("close_gripper")
    session("goto_pose", position + np.array([0, 0, 0.12]), quaternion)
    assert scene.data.xpos[scene.objects[name].body][2] - before > 0.08


def test_images_reach_the_code_as_arrays_that_it_may_change(env: Env) -> None:
    session = Session(env, "perception")
    found = session("get_observation")
    assert set(found) == {"agentview", "wrist"}
    for camera, one in found.items():
        assert one["rgb"].dtype == np.uint8
        assert one["depth"].dtype == np.float32
        assert one["intrinsics"].shape == (3, 3)
        np.testing.assert_allclose(one["camera_pose"], session.seen.cameras[camera].pose)
        one["camera_pose"][:] = 0
        assert session.seen.cameras[camera].pose.any()


def test_an_environment_without_truth_or_depth_is_named() -> None:
    blank = Observation({}, np.zeros(8, np.float32), "")
    api = api_of("privileged")
    api.reset(SPEC)
    with pytest.raises(UserError, match=r"Observation\.scene"):
        api.observe(blank)
    api = api_of("perception")
    api.reset(SPEC)
    api.observe(blank)
    with pytest.raises(UserError, match="agentview_depth"):
        next(api.call("get_observation", (), {}))


def test_the_first_observation_of_an_episode_gives_the_pose_to_hold() -> None:
    api = api_of("perception")
    for position in (0.1, 0.3):
        api.reset(SPEC)
        state = np.array([position, 0, 1, np.pi, 0, 0, 0.04, -0.04], np.float32)
        api.observe(Observation({}, state, ""))
        api.observe(dataclasses.replace(Observation({}, state + 0.01, ""), step=1))
        assert api.hold().shape == (10, 7)
        np.testing.assert_allclose(api.hold()[:, :6], np.tile(state[:6], (10, 1)))
