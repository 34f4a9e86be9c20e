"""Pushes against the arm: demonstrations then show how to come back to the way (DART, arXiv 1703.09327).

The actions that are recorded are the expert's own; the pushes belong to the episode, so a replay meets them again.
"""

from __future__ import annotations

import numpy as np

START, STEPS = 0.06, (3, 9)
"""Chance per control step that a push begins, and how long it lasts (control steps)."""
TURN = 0.5
"""Of a push, the share that turns about the vertical."""


class Disturbance:
    """What is added to the first six numbers of every action. `strength`: of the strongest push, in units of action;
    0 = none."""

    def __init__(self, strength: float, seed: list[int]) -> None:
        self._strength, self._rng = strength, np.random.default_rng(seed)
        self._push, self._left = np.zeros(6), 0

    def step(self) -> np.ndarray:
        """(6,) for the next control step."""
        if self._left == 0:
            self._push = np.zeros(6)
            if self._strength and self._rng.random() < START:
                self._left = int(self._rng.integers(*STEPS))
                way = self._rng.normal(size=3)
                self._push[:3] = self._strength * self._rng.uniform(0.3, 1) * way / np.linalg.norm(way)
                self._push[5] = TURN * self._strength * self._rng.uniform(-1, 1)
        self._left = max(0, self._left - 1)
        return self._push
