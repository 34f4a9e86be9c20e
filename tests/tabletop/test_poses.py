"""Chunks of poses: each step is converted relative to the arm's current pose, and demonstrations survive coding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from apt_bench.demos.demonstration import commanded_poses, make_poses
from apt_bench.envs.base import Observation
from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.models.action_codes import decode_chunk, encode_chunk
from apt_bench.policies.apt import steps
from apt_bench.policies.base import PolicySpec
from apt_bench.policies.oracle import OraclePolicy
from apt_bench.rollout.episode import LocalClient, Rollout, run_episode
from apt_bench.suites import EpisodeSpec, load_suite

pytestmark = pytest.mark.sim
SPEC = load_suite("rigid_pick_place").select(["so"], episodes=1)[0]


class Poses:
    """Returns poses, (32, 7)."""

    def __init__(self, rows: Callable[[Observation], np.ndarray], execute: int) -> None:
        self.spec = PolicySpec("poses", horizon=32, execute=execute, actions="pose")
        self.rows = rows

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        pass

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        return [self.rows(o) for o in observations]


def run(env: TabletopEnv, rows: Callable[[Observation], np.ndarray], execute: int) -> Rollout:
    return run_episode(env, LocalClient(Poses(rows, execute)), SPEC, Poses(rows, execute).spec, execute)


def pose_of(state: np.ndarray) -> np.ndarray:
    state = state.astype(np.float64)
    return make_poses(state[None, :3], Rotation.from_rotvec(state[None, 3:6]).as_matrix())[0]


def test_demonstrations_survive_their_codes_however_many_are_executed_at_once(env: TabletopEnv) -> None:
    oracle, observation = OraclePolicy(), env.reset(SPEC, privileged=True)
    oracle.reset([SPEC])
    states, actions = [], []
    while not env.done:
        for action in oracle.act([observation])[0]:
            states.append(observation.state)
            actions.append(action)
            observation = env.step_chunk(action[None], render=False)
            if env.done:
                break
    assert env.outcome().success
    achieved = np.stack([pose_of(s) for s in states])
    commanded = commanded_poses(achieved, np.stack(actions))
    openness = (1 - np.sign(np.stack(actions)[:, 6])) / 2
    camera = torch.from_numpy(pose_of(np.array([1.0, 0, 1, 0.3, 2.0, 0.2])))
    errors: list[float] = []

    def rows(obs: Observation) -> np.ndarray:
        at = np.minimum(obs.step + np.arange(32), len(actions) - 1)
        if obs.step < len(achieved):
            errors.append(float(np.linalg.norm(obs.state[:3] - achieved[obs.step, :3, 3])))
        live = torch.from_numpy(pose_of(obs.state))
        code = encode_chunk(torch.from_numpy(commanded[at]), torch.from_numpy(openness[at]), live, camera)
        poses, opening = decode_chunk(code.float().double(), live, camera)
        return steps(poses.numpy(), opening.numpy())

    for execute in (3, 8):
        errors.clear()
        assert run(env, rows, execute).record.outcome == "success"
        assert np.mean(errors) < 0.001
        assert max(errors) < 0.003


def test_a_chunk_of_poses_equals_single_decisions(env: TabletopEnv) -> None:
    """The current pose is read before every step, so executing 8 steps at once changes no bit."""
    start = pose_of(env.reset(SPEC).state)
    away = np.arange(400)[:, None] * np.array([0.0, 0.002, -0.001])

    def rows(obs: Observation) -> np.ndarray:
        poses = np.tile(start, (32, 1, 1))
        poses[:, :3, 3] += away[obs.step : obs.step + 32]
        return steps(poses, np.ones(32))

    ends = [run(env, rows, execute) for execute in (1, 8)]
    assert ends[0].record.end_hash == ends[1].record.end_hash
    np.testing.assert_array_equal(ends[0].actions, ends[1].actions)
    assert np.abs(ends[0].actions).max() <= 1
    assert len(ends[0].actions) == ends[0].record.steps
