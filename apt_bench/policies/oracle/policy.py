"""The expert behind the `Policy` protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np

from apt_bench.core.config import Natural, Range, build
from apt_bench.core.errors import UserError
from apt_bench.envs.base import Observation
from apt_bench.policies.base import PolicySpec, Resources
from apt_bench.policies.oracle.planner import expert
from apt_bench.policies.oracle.variation import Variation
from apt_bench.policies.oracle.world import World

Amount = Annotated[float, Range(least=0, most=2)]


class OraclePolicy:
    """Solves tasks from ground truth: the ceiling of a suite, and the check that a task can be solved at all.

    One decision per control step, so that every motion is closed loop. variation: 0 = the same plain motions every
    time; 1 = varied ones, for demonstrations (speed, approach, aim, near misses), drawn from the scene
    (`Observation.noise_key`) and `seed`: the same episode has the same actions, and so has the same scene under another
    sentence. Raises UserError for an amount outside 0 to 2.
    """

    spec = PolicySpec(
        "oracle", horizon=1, execute=1, privileged=True, resources=Resources(placement="worker")
    )

    def __init__(self, variation: float = 0.0, seed: int = 0) -> None:
        self._variation: float = build(Amount, variation, "variation")
        self._seed: int = build(Natural, seed, "seed")
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
            raise UserError("needs the scene's ground truth: run it in an environment that gives it.")
        if observation.episode not in self._experts:
            variation = Variation(self._variation, observation.noise_key, self._seed)
            self._experts[observation.episode] = expert(World(observation.scene, variation))
        return next(self._experts[observation.episode])[None].astype(np.float64)
