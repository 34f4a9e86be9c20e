"""Images, states and poses of clients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from apt_bench.core.errors import UserError
from apt_bench.envs.base import ACTION_SCALE, axis_angle
from apt_bench.serving.observations import canonical, chained, image_of, state_of


def antipodal(turn: np.ndarray) -> np.ndarray:
    """The axis-angle of the quaternion with w >= 0."""
    return Rotation.from_rotvec(turn).as_rotvec()


@pytest.mark.parametrize("seed", range(5))
def test_both_forms_of_a_trajectory_become_robosuites(seed):
    """Quaternions that change continuously, from a gripper that points down to more than half a turn about z."""
    rng = np.random.default_rng(seed)
    yaw = np.cumsum(rng.normal(0.08, 0.05, 60))
    tilt = 0.1 * np.cumsum(rng.normal(0, 0.1, (60, 3)), axis=0)
    down = Rotation.from_euler("x", np.pi) * Rotation.from_euler("z", 0.3)
    forms = {"robosuite": [], "antipodal": []}
    quaternion = None
    for z, small in zip(yaw, tilt, strict=True):
        x, y, zz, w = (Rotation.from_euler("z", z) * Rotation.from_rotvec(small) * down).as_quat()
        now = np.array([w, x, y, zz])
        reference = np.array([0.0, 1, 0, 0]) if quaternion is None else quaternion
        quaternion = now if now @ reference >= 0 else -now
        forms["robosuite"].append(axis_angle(quaternion))
        forms["antipodal"].append(antipodal(axis_angle(quaternion)))
    assert quaternion[1] < 0  # more than half a turn
    for form in forms.values():
        previous = None
        for turn, wanted in zip(form, forms["robosuite"], strict=True):
            state = np.zeros(8, np.float32)
            state[3:6] = turn
            previous = canonical(state, previous)
            np.testing.assert_allclose(previous[3:6], wanted, atol=2e-5)


def test_a_state_in_robosuites_form_is_not_touched():
    state = np.array([0, 0, 0, 3.14, 0.01, -0.09, 0, 0], np.float32)
    assert canonical(state, None) is state
    assert canonical(np.zeros(8, np.float32), state) is not None


@pytest.mark.parametrize("size", [1, 8, 128, 224, 256, 512])
def test_square_images_become_256(size):
    image = np.full((size, size, 3), 77, np.uint8)
    found = image_of(image, "image")
    assert found.shape == (256, 256, 3)
    assert (found == 77).all()


def test_an_image_of_256_is_not_resampled():
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    np.testing.assert_array_equal(image_of(image, "image"), image)


@pytest.mark.parametrize("shape", [(0, 0, 3), (8, 8, 4), (8, 8), (5000, 5000, 3), (8, 9, 3), (1, 8, 8, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UserError, match="'image'"):
        image_of(np.zeros(shape, np.uint8), "image")


@pytest.mark.parametrize("value", [None, [1.0], np.zeros((2, 8)), [1, 2, 3, 4, 5, 6, 7, np.inf], {"a": 1}])
def test_other_states_are_refused(value):
    with pytest.raises(UserError, match="'state'"):
        state_of(value, "state")


def test_chained_actions_lead_through_the_poses():
    rng = np.random.default_rng(0)
    state = np.array([0.1, 0.2, 1.0, 3.1, 0.1, 0.0, 0.04, -0.04], np.float32)
    start = Rotation.from_rotvec(state[3:6].astype(np.float64))
    turns = [Rotation.from_rotvec([0, 0, 0.2 * i]) * start for i in range(1, 5)]
    places = state[:3] + np.cumsum(rng.uniform(-0.04, 0.04, (4, 3)), axis=0)
    poses = np.array([[*p, *t.as_rotvec(), -1.0] for p, t in zip(places, turns, strict=True)])
    place, turn = state[:3].astype(np.float64), start
    for action, pose, wanted in zip(chained(poses, state), poses, turns, strict=True):
        place = place + action[:3] * ACTION_SCALE[:3]
        turn = Rotation.from_rotvec(action[3:6] * ACTION_SCALE[3:]) * turn
        np.testing.assert_allclose(place, pose[:3], atol=1e-7)
        assert (turn * wanted.inv()).magnitude() < 1e-6
        assert action[6] == -1
