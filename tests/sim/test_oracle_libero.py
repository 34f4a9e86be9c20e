"""The oracle in LIBERO: it solves one task of each kind, the same way every time, and never raises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apt_bench.envs.base import Outcome
from apt_bench.envs.libero import LiberoEnv
from apt_bench.policies.oracle import OraclePolicy
from apt_bench.suites import load_suite

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = LiberoEnv()
    yield env
    env.close()


def play(env: LiberoEnv, cell: str, task: str) -> Outcome:
    suite = load_suite("libero_pro")
    spec = suite.select([cell], [task], episodes=1)[0]
    policy = OraclePolicy()
    policy.reset([spec.key.id])
    observation = env.reset(spec, privileged=True)
    while not env.outcome().done:
        observation = env.step_chunk(policy.act([observation])[0])
    return env.outcome()


@pytest.mark.parametrize(
    ("cell", "task"),
    [
        ("spatial_pos", "0"),  # a bowl by its rim, onto a plate
        ("object_task", "3"),  # a bottle into the basket
        ("long_pos", "1"),  # two things into the basket
        ("long_pos", "4"),  # two mugs onto two plates
        ("goal_pos", "3"),  # a drawer pulled open, a bowl put into it
        ("long_pos", "2"),  # a knob turned, a pot put on the stove
    ],
)
def test_solves(env: LiberoEnv, cell: str, task: str) -> None:
    outcome = play(env, cell, task)
    assert outcome.success, outcome.failure
    goal = outcome.events["goal"]
    assert all(truth["last"] for truth in goal.values())


def test_same_every_time(env: LiberoEnv) -> None:
    first, second = (play(env, "object_pos", "9") for _ in range(2))
    assert (first.end_hash, first.steps, first.success) == (second.end_hash, second.steps, True)
