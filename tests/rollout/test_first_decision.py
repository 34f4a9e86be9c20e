import numpy as np
import pytest

from apt_bench.core.config import load_object
from apt_bench.rollout.first_decision import chunk_change, first_decisions
from apt_bench.suites import EpisodeSpec, load_suite
from apt_bench.suites.probes import expand


class Reader:
    """Moves along x by the length of its instruction, whatever the state of its noise generator."""

    from apt_bench.policies.base import PolicySpec, Resources

    spec = PolicySpec("reader", horizon=4, resources=Resources(placement="worker"))

    def reset(self, episodes):
        self.episodes = list(episodes)

    def act(self, observations):
        return [
            np.tile([len(o.instruction) / 100, 0, 0, 0, 0, 0, 1 if o.instruction else -1], (4, 1))
            for o in observations
        ]


@pytest.fixture
def specs() -> list[EpisodeSpec]:
    return load_suite("tests/toy_suite.yaml").select(episodes=2)


def test_reader_changes_and_its_change_is_measured(specs: list[EpisodeSpec]) -> None:
    env = load_object(specs[0].env)()
    changes = list(first_decisions(env, Reader(), expand(specs, ["null"], specs)))
    again = [c for c in changes if c.spec.key.prompt == "repeat"]
    changes = [c for c in changes if c.spec.key.prompt == "null"]
    assert len(changes) == len(again) == len(specs)
    assert not any(c.changed for c in again)
    for change, spec in zip(changes, specs, strict=True):
        assert change.changed
        assert change.translation == pytest.approx(len(spec.prompt) / 100)
        assert change.relative == pytest.approx(1)
        assert change.gripper == 1


def test_deaf_policy_does_not_change(specs: list[EpisodeSpec]) -> None:
    from apt_bench.policies.simple import RandomPolicy

    env = load_object(specs[0].env)()
    changes = list(first_decisions(env, RandomPolicy(), expand(specs, ["null", "punctuation"], specs)))
    assert changes
    assert not any(c.changed for c in changes)


class OwnNoise(Reader):
    """Ignores the instruction, and has noise that cannot be seeded."""

    def act(self, observations):
        return [np.random.default_rng().uniform(-1, 1, (4, 7)) for _ in observations]


def test_noise_of_the_policys_own_shows_in_the_repeat(specs: list[EpisodeSpec]) -> None:
    env = load_object(specs[0].env)()
    changes = list(first_decisions(env, OwnNoise(), expand(specs, ["null"], specs)))
    assert {c.spec.key.prompt: c.changed for c in changes} == {"null": True, "repeat": True}


class Recorder(Reader):
    """Keeps its observations."""

    def __init__(self):
        self.seen = []

    def act(self, observations):
        self.seen += observations
        return super().act(observations)


def test_each_prompt_is_an_episode_of_its_own_with_the_scenes_noise_key(specs: list[EpisodeSpec]) -> None:
    """This holds also where the environment, like the toy one, sets no key."""
    policy, probed = Recorder(), expand(specs[:1], ["null"], specs)
    list(first_decisions(load_object(specs[0].env)(), policy, probed))
    assert [o.episode for o in policy.seen] == [s.key.id for s in probed]
    assert {o.noise_key for o in policy.seen} == {specs[0].noise_key}


def test_chunks_of_unequal_length_are_compared_over_the_common_part(specs: list[EpisodeSpec]) -> None:
    change = chunk_change(specs[0], np.ones((2, 7)), np.ones((5, 7)))
    assert not change.changed
