"""The expert behind the `Policy` protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from apt_bench.envs.base import Observation
from apt_bench.errors import UserError
from apt_bench.policies.base import PolicySpec
from apt_bench.policies.oracle.geometry import World
from apt_bench.policies.oracle.planner import expert


class OraclePolicy:
    """Solves tasks from ground truth: the ceiling of a suite, and the check that a task can be solved at all.

    Deterministic: it draws no random numbers. One decision per control step, so that every motion is closed loop.
    """

    spec = PolicySpec(name="oracle", horizon=1, execute=1, privileged=True, placement="worker")

    def __init__(self) -> None:
        self._experts: dict[str, Iterator[np.ndarray]] = {}

    def reset(self, episodes: Sequence[str]) -> None:
        """These episodes begin, and those before are over: an expert holds its scene, and with it a compiled model.

        An expert starts at its first observation, when the scene has settled."""
        self._experts.clear()

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """One action (1, 7) per observation; each must carry its live scene."""
        return [self._act(observation) for observation in observations]

    def _act(self, observation: Observation) -> np.ndarray:
        if observation.scene is None:
            raise UserError(
                "The oracle needs the scene's ground truth: run it in an environment that gives it."
            )
        if observation.episode not in self._experts:
            self._experts[observation.episode] = expert(World(observation.scene))
        return next(self._experts[observation.episode])[None].astype(np.float64)
