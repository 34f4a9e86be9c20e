"""Random pushes against the arm, so that demonstrations show how to recover (DART, arXiv 1703.09327).

The recorded actions are the expert's own. The pushes are part of the episode, so a replay repeats them.
"""

from __future__ import annotations

import numpy as np

START, STEPS = 0.06, (3, 9)
"""Probability per control step that a push begins, and the range of its duration in control steps (end excluded)."""
TURN = 0.5
"""Strength of a push's rotation about the vertical axis, relative to the strongest push."""


class Disturbance:
    """Added to the first six numbers of every action. `strength`: of the strongest push, in units of an action; 0 means
    no pushes."""

    def __init__(self, strength: float, seed: list[int]) -> None:
        self.strength, self._rng = strength, np.random.default_rng(seed)
        self._push, self._left = np.zeros(6), 0

    def step(self) -> np.ndarray:
        """Return the disturbance of the next control step, (6,)."""
        if self._left == 0:
            self._push = np.zeros(6)
            if self.strength and self._rng.random() < START:
                self._left = int(self._rng.integers(*STEPS))
                way = self._rng.normal(size=3)
                self._push[:3] = self.strength * self._rng.uniform(0.3, 1) * way / np.linalg.norm(way)
                self._push[5] = TURN * self.strength * self._rng.uniform(-1, 1)
        self._left = max(0, self._left - 1)
        return self._push
