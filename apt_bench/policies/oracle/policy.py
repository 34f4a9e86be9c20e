"""The scripted expert as a policy."""

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
from apt_bench.suites import EpisodeSpec

Amount = Annotated[float, Range(least=0, most=2)]


class OraclePolicy:
    """A scripted expert that reads the simulator's state. It shows which tasks can be solved and gives the upper bound
    of a suite's scores.

    It makes one decision per control step, so every motion is closed loop. All draws are seeded by the scene
    (`Observation.noise_key`) and `seed`: the same scene has the same actions, whatever the instruction.

    Args:
        variation: 0 = the same motions every time; 1 = varied motions for demonstrations (speed, approach, aim, missed
            grasps); at most 2.
        seed: Seed of the variation.

    Raises:
        UserError: An argument is outside its range.
    """

    spec = PolicySpec(
        "oracle", horizon=1, execute=1, privileged=True, resources=Resources(placement="worker")
    )

    def __init__(self, variation: float = 0.0, seed: int = 0) -> None:
        self._variation: float = build(Amount, variation, "variation")
        self._seed: int = build(Natural, seed, "seed")
        self._experts: dict[str, Iterator[np.ndarray]] = {}

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Discard the experts of earlier episodes, and with them their scenes. A new expert starts at the first
        observation of its episode, after the scene has settled."""
        self._experts.clear()

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """One action (1, 7) per observation. Each observation must have its `scene`."""
        return [self._act(observation) for observation in observations]

    def _act(self, observation: Observation) -> np.ndarray:
        if observation.scene is None:
            raise UserError(
                "needs `Observation.scene`, which this environment does not provide. Run it in one that does."
            )
        if observation.episode not in self._experts:
            variation = Variation(self._variation, observation.noise_key, self._seed)
            self._experts[observation.episode] = expert(World(observation.scene, variation))
        return next(self._experts[observation.episode])[None].astype(np.float64)
