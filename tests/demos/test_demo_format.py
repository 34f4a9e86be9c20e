import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.demos.demonstration import Demonstration
from tests.demos.samples import sample


def with_actions(actions: list[list[float]]) -> Demonstration:
    demo = sample(steps=len(actions))
    return Demonstration(demo.info, {}, demo.state, np.array(actions))


def test_commanded_pose_is_the_current_one_plus_the_delta_in_world_axes() -> None:
    demo = with_actions([[1, -0.5, 0, 0, 0, 0.4, 1], [2, 0, 0, 0, 0, 0, -1]])
    here, there = demo.achieved[0], demo.commanded[0]
    np.testing.assert_allclose(here[:3, 3], demo.state[0, :3])
    np.testing.assert_allclose(here[:3, :3], Rotation.from_rotvec(demo.state[0, 3:6]).as_matrix())
    np.testing.assert_allclose(there[:3, 3] - here[:3, 3], [0.05, -0.025, 0], atol=1e-12)
    np.testing.assert_allclose(there[:3, :3], Rotation.from_rotvec([0, 0, 0.2]).as_matrix() @ here[:3, :3])
    # the controller clips: two units are one
    np.testing.assert_allclose(demo.commanded[1, 0, 3] - demo.achieved[1, 0, 3], 0.05, atol=1e-12)
    assert demo.gripper_target.tolist() == [0, 1]


def test_openness_is_a_fraction_of_the_widest() -> None:
    demo = sample()
    np.testing.assert_allclose(demo.openness, 0.975, atol=1e-6)


def test_noop_needs_no_motion_and_the_last_kept_gripper_command() -> None:
    still, move = [0.0] * 6, [0.5] + [0.0] * 5
    actions = [[*still, -1], [*move, -1], [*still, -1], [*still, 1], [*still, 1], [*move, 1], [*still, -1]]
    assert with_actions(actions).noop.tolist() == [True, False, True, False, True, False, False]
