"""Motions on the tabletop: accuracy, steps, blocked arms, fingers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from apt_bench.envs.base import Env, action_towards
from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.policies.code_as_policies.motion import CHUNK, CLOSE, OPEN, ApiError, Arm, Motion
from apt_bench.suites import load_suite

SPEC = load_suite("rigid_pick_place").select(episodes=1)[0]


class Driver:
    """Executes motions as the rollout loop does, and counts decisions."""

    def __init__(self, env: Env, execute: int = CHUNK, robot: str = "panda") -> None:
        spec = dataclasses.replace(SPEC, args={**SPEC.args, "robot": robot}, max_steps=2000)
        self.env, self.execute, self.arm = env, execute, Arm()
        self.arm.observe(env.reset(spec))
        self.rows: list[np.ndarray] = []
        self.path: list[np.ndarray] = []

    def do(self, motion: Motion) -> Any:
        try:
            chunk = next(motion)
            while True:
                assert chunk.ndim == 2
                assert chunk.shape[1] == 7
                assert 1 <= len(chunk) <= CHUNK
                assert np.isfinite(chunk).all()
                seen = self.arm.observation
                for row in chunk[: self.execute]:
                    self.rows.append(row)
                    seen = self.env.step_chunk(np.clip(action_towards(row, seen.state), -1, 1)[None])
                    self.path.append(seen.state[:3])
                chunk = motion.send(seen)
        except StopIteration as end:
            return end.value

    def away(self, position: np.ndarray, rotation: Rotation) -> tuple[float, float]:
        turn = (rotation * self.arm.rotation.inv()).magnitude()
        return float(np.linalg.norm(position - self.arm.position)), float(np.rad2deg(turn))


@pytest.fixture(scope="module")
def env() -> Iterator[Env]:
    env = TabletopEnv()
    yield env
    env.close()


@pytest.mark.parametrize("robot", ["panda", "ur5e"])
@pytest.mark.parametrize("execute", [1, 3, CHUNK])
def test_a_pose_is_reached_in_few_steps(env: Env, robot: str, execute: int) -> None:
    driver = Driver(env, execute, robot)
    goal = driver.arm.position + np.array([0.06, 0.1, -0.08])
    rotation = Rotation.from_euler("z", 30, degrees=True) * driver.arm.rotation
    driver.do(driver.arm.go_to(goal, rotation))
    distance, angle = driver.away(goal, rotation)
    assert distance < 0.005
    assert angle < 3
    assert driver.arm.observation.step <= 40


def test_a_path_is_straight(env: Env) -> None:
    driver = Driver(env, execute=1)
    start = driver.arm.position
    goal = start + np.array([0.05, 0.2, -0.05])
    driver.do(driver.arm.go_to(goal, driver.arm.rotation))
    along = (goal - start) / np.linalg.norm(goal - start)
    offsets = np.array(driver.path) - start
    worst = np.linalg.norm(offsets - np.outer(offsets @ along, along), axis=1).max()
    assert worst < 0.012


def test_the_approach_comes_from_above(env: Env) -> None:
    driver = Driver(env)
    goal = driver.arm.position + np.array([0.0, 0.12, -0.1])
    down = Rotation.from_euler("x", np.pi)
    driver.do(driver.arm.go_to(goal, down, above=0.08))
    near = [row for row in driver.rows if row[2] < goal[2] + 0.06]
    assert near
    assert max(np.linalg.norm(row[:2] - goal[:2]) for row in near) < 0.025
    assert driver.away(goal, down)[0] < 0.005


def test_of_two_equal_grasps_the_one_nearer_to_the_start_is_used(env: Env) -> None:
    driver = Driver(env)
    goal, rotation = driver.arm.position, driver.arm.rotation
    driver.do(driver.arm.go_to(goal, rotation * Rotation.from_euler("z", 170, degrees=True)))
    assert driver.away(goal, rotation * Rotation.from_euler("z", -10, degrees=True))[1] < 3
    assert driver.arm.observation.step < 20


def test_a_pose_below_the_table_is_an_error_with_the_distance(env: Env) -> None:
    driver = Driver(env)
    goal = driver.arm.position * [1, 1, 0] + np.array([0, 0, 0.6])
    with pytest.raises(ApiError, match=r"stopped \d{3} mm and \d+ degrees from the pose, at position"):
        driver.do(driver.arm.go_to(goal, driver.arm.rotation))
    assert driver.arm.observation.step < 120
    # Afterwards the arm holds where it is, instead of pressing on.
    assert np.linalg.norm(driver.arm.hold()[0, :3] - driver.arm.position) < 1e-6


def test_the_fingers_close_open_and_keep_the_pose(env: Env) -> None:
    driver = Driver(env)
    before = driver.arm.position
    assert driver.arm.opening > 0.07
    for command, expected in ((CLOSE, 0.0), (OPEN, 0.08)):
        first = driver.arm.observation.step
        driver.do(driver.arm.move_gripper(command))
        assert driver.arm.opening == pytest.approx(expected, abs=0.012)
        assert driver.arm.observation.step - first <= 20
        assert (driver.arm.hold()[:, 6] == command).all()
    assert np.linalg.norm(driver.arm.position - before) < 0.005


def test_the_next_episode_starts_afresh(env: Env) -> None:
    driver = Driver(env)
    driver.do(driver.arm.move_gripper(CLOSE))
    driver.arm.reset()
    driver.arm.observe(env.reset(SPEC))
    np.testing.assert_allclose(driver.arm.hold()[0, :6], driver.arm.observation.state[:6], atol=1e-6)
    assert driver.arm.hold()[0, 6] == OPEN
