"""Varied motions for demonstrations: different paths, and missed grasps with their recovery.

All draws are seeded by the scene's noise key and a seed. The same scene therefore has the same actions on any worker
and under any instruction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

AIM_ERROR = 0.010  # m, standard deviation of the aim error
CORRELATION = 12  # control steps, time constant of the aim error
FADE_DISTANCE = 0.12  # m from the target within which the aim error decreases to zero
MIN_SPEED = 0.55  # share of full speed, at least
VIA_OFFSET = 0.035  # m from the pre-grasp position, to each side and above, that an approach may start
NEAR_MISS = 0.2  # probability that a grasp is aimed beside the object
MISS_DISTANCE = (0.015, 0.03)  # m, of such a grasp
COST_RANGE = 0.06  # a choice may cost this much more than the best


class Choice(Protocol):
    """A grasp or a placement."""

    @property
    def cost(self) -> float:
        """Lower is better."""
        ...


C = TypeVar("C", bound=Choice)


class Variation:
    """How the motions of one episode differ from the unvaried ones.

    amount: 0 = not at all, 1 = as in demonstrations; all sizes and probabilities scale with it. key: seeds the draws.
    """

    def __init__(self, amount: float = 0.0, *key: str | int) -> None:
        self.amount = amount
        digest = hashlib.sha256("\n".join(map(str, key)).encode()).digest()
        self._random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        self._error = np.zeros(3)

    def speed(self) -> float:
        """Speed of the next motion, as a share of full speed."""
        return 1.0 - min(1.0, self.amount) * (1.0 - MIN_SPEED) * float(self._random.random())

    def aim(self, here: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Target (3,) for one control step of an end effector at `here` (3,). It is off the true target by an
        Ornstein-Uhlenbeck process, but never below it; near it the error decreases to zero."""
        if not self.amount:
            return target
        keep = np.exp(-1 / CORRELATION)
        noise = self._random.normal(0.0, self.amount * AIM_ERROR, 3)
        self._error = keep * self._error + np.sqrt(1 - keep**2) * noise
        error = self._error * min(1.0, float(np.linalg.norm(target - here)) / FADE_DISTANCE)
        return target + np.array([error[0], error[1], abs(error[2])])

    def via(self, pre_grasp: np.ndarray) -> np.ndarray:
        """A waypoint (3,) beside and above the pre-grasp position (3,)."""
        side = self._random.uniform(-1, 1, 3)
        return pre_grasp + self.amount * VIA_OFFSET * np.array([side[0], side[1], abs(side[2])])

    def near_miss(self) -> np.ndarray:
        """Error (3,) of the next grasp position; usually zero."""
        if self._random.random() >= self.amount * NEAR_MISS:
            return np.zeros(3)
        angle, size = self._random.uniform(0, 2 * np.pi), self._random.uniform(*MISS_DISTANCE)
        return size * np.array([np.cos(angle), np.sin(angle), self._random.random()])

    def choose(self, options: Sequence[C], attempt: int) -> C:
        """At the first attempt one of the options within `COST_RANGE` of the best, then the next one each time."""
        good = sum(o.cost <= options[0].cost + COST_RANGE * self.amount for o in options)
        first = int(self._random.integers(good)) if self.amount and attempt == 0 else 0
        return options[(first + attempt) % len(options)]
