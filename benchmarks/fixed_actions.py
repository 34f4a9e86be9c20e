"""Actions for benchmarks of speed: the same episode for every harness."""

from __future__ import annotations

import numpy as np


def moves(steps: int) -> np.ndarray:
    """Fixed actions, (steps, 7): the arm moves above the table and never succeeds."""
    rng = np.random.default_rng(0)
    actions = np.clip(rng.normal(0, 0.4, (steps, 7)), -1, 1)
    actions[:, 6] = -1
    return actions
