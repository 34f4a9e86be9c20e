"""A policy that gets both images and moves at random: it has every cost of a rollout except that of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apt_bench.envs.base import ACTION_DIM, AGENTVIEW, WRIST, Observation
from apt_bench.policies.base import PolicySpec
from apt_bench.suites import EpisodeSpec


class ImagePolicy:
    """Small random motions with an open gripper, which depend on the step only."""

    spec = PolicySpec("images", cameras=(AGENTVIEW, WRIST), horizon=10, execute=10)

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Nothing is kept between decisions."""

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """Ten actions per observation."""
        return [self._chunk(o) for o in observations]

    def _chunk(self, observation: Observation) -> np.ndarray:
        assert set(observation.images) == set(self.spec.cameras)
        chunk = np.clip(np.random.default_rng(observation.step).normal(0, 0.4, (10, ACTION_DIM)), -1, 1)
        chunk[:, 6] = -1
        return chunk
