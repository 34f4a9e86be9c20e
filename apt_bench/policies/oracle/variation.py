"""Varied motions: demonstrations that are not all one path, with near misses and what mends them.

Every draw comes from the scene's noise key and a seed, so the same episode has the same actions on any worker, and
under any sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

AIM_ERROR = 0.010  # m: standard deviation of the aim error on the way
CORRELATION = 12  # control steps over which the aim error changes
FADE_DISTANCE = 0.12  # m from the target below which it dies out
MIN_SPEED = 0.55  # share of full speed
VIA_OFFSET = 0.035  # m to each side, and above: where an approach comes from
NEAR_MISS = 0.2  # of grasps: aimed badly
MISS_DISTANCE = (0.015, 0.03)  # m
COST_RANGE = 0.06  # cost by which a choice may be worse than the best


class Choice(Protocol):
    """A grasp or a spot."""

    @property
    def cost(self) -> float:
        """Lower is better."""
        ...


C = TypeVar("C", bound=Choice)


class Variation:
    """How the motions of one episode differ from the plain ones. `amount`: 0 = not at all, 1 = as in demonstrations;
    all sizes and probabilities scale with it."""

    def __init__(self, amount: float = 0.0, *key: str | int) -> None:
        self.amount = amount
        digest = hashlib.sha256("\n".join(map(str, key)).encode()).digest()
        self._random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        self._error = np.zeros(3)

    def speed(self) -> float:
        """Share of full speed for the next motion."""
        return 1.0 - min(1.0, self.amount) * (1.0 - MIN_SPEED) * float(self._random.random())

    def aim(self, here: np.ndarray, target: np.ndarray) -> np.ndarray:
        """(3,) where a hand that is `here` (3,) aims: off the target by an Ornstein-Uhlenbeck process, never below it,
        that dies out near it."""
        if not self.amount:
            return target
        keep = np.exp(-1 / CORRELATION)
        noise = self._random.normal(0.0, self.amount * AIM_ERROR, 3)
        self._error = keep * self._error + np.sqrt(1 - keep**2) * noise
        error = self._error * min(1.0, float(np.linalg.norm(target - here)) / FADE_DISTANCE)
        return target + np.array([error[0], error[1], abs(error[2])])

    def via(self, above: np.ndarray) -> np.ndarray:
        """(3,) a point beside and over the one (3,) from which the hand goes down."""
        side = self._random.uniform(-1, 1, 3)
        return above + self.amount * VIA_OFFSET * np.array([side[0], side[1], abs(side[2])])

    def near_miss(self) -> np.ndarray:
        """(3,) by how far the next grasp is aimed badly; mostly zero."""
        if self._random.random() >= self.amount * NEAR_MISS:
            return np.zeros(3)
        angle, size = self._random.uniform(0, 2 * np.pi), self._random.uniform(*MISS_DISTANCE)
        return size * np.array([np.cos(angle), np.sin(angle), self._random.random()])

    def choose(self, options: Sequence[C], attempt: int) -> C:
        """At the first attempt one of those that are about as good as the best; then the next, and the next."""
        good = sum(o.cost <= options[0].cost + COST_RANGE * self.amount for o in options)
        first = int(self._random.integers(good)) if self.amount and attempt == 0 else 0
        return options[(first + attempt) % len(options)]
