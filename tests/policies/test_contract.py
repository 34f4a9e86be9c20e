"""The contract of a policy, for every shipped one that loads without a file and without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from apt_bench.core.config import load_object
from apt_bench.envs.base import ACTION_DIM, Env, Observation
from apt_bench.policies.guard import GuardedPolicy
from apt_bench.policies.registry import baseline_names, find_policy, load_baseline
from apt_bench.suites import load_suite

CHEAP = {"apt_mini": {"device": "cpu", "sample_steps": 2, "max_batch": 8}}
NAMES = [name for name in baseline_names() if (r := load_baseline(name)).file is None and r.server is None]
EPISODES, DECISIONS = 3, 2
ROUNDING = {"apt_mini": 1e-5}
"""A network's matrix products round differently in a batch; the others are exact."""


def made(name: str) -> GuardedPolicy:
    return find_policy(name, CHEAP.get(name, {})).load()


class Scenes:
    """Three episodes, each in an environment of its own."""

    def __init__(self, spec: Any) -> None:
        suite = load_suite("rigid_pick_place")
        self.specs = suite.select(["so"], ["0"], episodes=EPISODES)
        self.envs: list[Env] = [load_object(suite.env)() for _ in self.specs]
        self._spec = spec

    def begin(self) -> list[Observation]:
        pairs = zip(self.envs, self.specs, strict=True)
        return [env.reset(spec, self._spec.cameras, self._spec.privileged) for env, spec in pairs]

    def step(self, chunks: list[np.ndarray]) -> list[Observation]:
        return [
            env.step_chunk(c[: self._spec.execute]) for env, c in zip(self.envs, chunks, strict=True)
        ]  # fmt: skip


@pytest.fixture(params=NAMES)
def policy(request: pytest.FixtureRequest) -> GuardedPolicy:
    return made(request.param)


@pytest.fixture
def scenes(policy: GuardedPolicy) -> Iterator[Scenes]:
    found = Scenes(policy.spec)
    yield found
    for env in found.envs:
        env.close()


def chunks_of(policy: GuardedPolicy, scenes: Scenes) -> np.ndarray:
    """Chunks (decision, episode, horizon, 7) of the episodes' first decisions."""
    observations = scenes.begin()
    policy.reset(scenes.specs)
    found = []
    for _ in range(DECISIONS):
        chunks = policy.act(observations)
        found.append([_padded(c, policy.spec.horizon) for c in chunks])
        observations = scenes.step(chunks)
    return np.array(found)


def _padded(chunk: np.ndarray, horizon: int) -> np.ndarray:
    assert chunk.shape[1] == ACTION_DIM
    assert 1 <= len(chunk) <= horizon
    return np.pad(chunk, ((0, horizon - len(chunk)), (0, 0)), constant_values=np.nan)


def test_the_shipped_policies_are_covered() -> None:
    assert NAMES == ["apt_mini", "oracle", "random", "zero"]


def test_a_batch_gives_what_single_calls_give(policy: GuardedPolicy, scenes: Scenes) -> None:
    """For the same observations. Those after a step would differ by more: a rounding difference can change a pixel."""
    alone = made(policy.spec.name)
    observations = scenes.begin()
    policy.reset(scenes.specs)
    for spec in scenes.specs:
        alone.reset([spec])
    for _ in range(DECISIONS):
        chunks = policy.act(observations)
        for observation, chunk in zip(observations, chunks, strict=True):
            single = alone.act([observation])[0]
            np.testing.assert_allclose(single, chunk, rtol=0, atol=ROUNDING.get(policy.spec.name, 0.0))
        observations = scenes.step(chunks)


def test_the_order_of_a_batch_does_not_matter(policy: GuardedPolicy, scenes: Scenes) -> None:
    observations = scenes.begin()
    policy.reset(scenes.specs)
    forward = policy.act(observations)
    again = made(policy.spec.name)
    again.reset(scenes.specs)
    backward = again.act(observations[::-1])[::-1]
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=ROUNDING.get(policy.spec.name, 0.0))


def test_after_a_reset_an_episode_starts_as_if_it_were_the_first(
    policy: GuardedPolicy, scenes: Scenes
) -> None:
    first = chunks_of(policy, scenes)
    np.testing.assert_array_equal(chunks_of(policy, scenes), first)


def test_two_policies_of_the_same_arguments_do_the_same(policy: GuardedPolicy, scenes: Scenes) -> None:
    first = chunks_of(policy, scenes)
    np.testing.assert_array_equal(chunks_of(made(policy.spec.name), scenes), first)


def test_what_it_sees_is_left_as_it_was(policy: GuardedPolicy, scenes: Scenes) -> None:
    observations = scenes.begin()
    policy.reset(scenes.specs)
    before = [(o.state.copy(), {k: v.copy() for k, v in o.images.items()}) for o in observations]
    policy.act(observations)
    for observation, (state, images) in zip(observations, before, strict=True):
        np.testing.assert_array_equal(observation.state, state)
        for name, image in images.items():
            np.testing.assert_array_equal(observation.images[name], image)
