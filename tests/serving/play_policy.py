"""Policies for the tests of `apt-bench play`, which do what the instruction says."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.envs.base import ACTION_DIM, Observation
from apt_bench.policies.base import PolicySpec, Resources
from apt_bench.suites import EpisodeSpec


class ObedientPolicy:
    """Moves the arm a little, or fails in the way that the instruction names."""

    spec = PolicySpec("obedient", horizon=4, execute=4, resources=Resources(placement="worker"))

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        pass

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        order = observations[0].instruction
        if order == "hang":
            time.sleep(1000)
        if order == "die":
            os._exit(3)
        if order == "raise":
            raise ValueError("the toy <b>policy</b> is confused")
        if order == "slow":
            time.sleep(0.3)
        return [np.full((4, ACTION_DIM), 0.2) for _ in observations]


class CountingPolicy(ObedientPolicy):
    """Serves one episode at a time: its actions depend on how often it was asked since the last `reset`."""

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        self._asked = 0

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        self._asked += 1
        return [np.full((4, ACTION_DIM), 0.1 * self._asked) for _ in observations]


class UnloadablePolicy(ObedientPolicy):
    """Has no weights."""

    def __init__(self) -> None:
        raise UserError("No file 'weights.pt'.")
