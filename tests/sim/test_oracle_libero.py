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


def play(env: LiberoEnv, cell: str, task: str, suite_name: str = "libero_pro") -> Outcome:
    suite = load_suite(suite_name)
    spec = suite.select([cell], [task], episodes=1)[0]
    policy = OraclePolicy()
    policy.reset([spec])
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


@pytest.mark.parametrize(
    ("suite", "cell", "task"),
    [
        ("libero", "goal", "5"),  # a plate dragged along the table
        ("libero_pro", "goal_task", "4"),  # a plate by its rim, onto the cabinet
        ("libero_pro", "goal_task", "0"),  # a drawer whose handle leaves no room, dragged open by its bar
        ("libero", "long", "9"),  # a mug by its handle into the microwave, the door pushed shut
        ("libero_pro", "long_pos", "0"),  # a can so close to the base that the hand leans back
        ("libero", "long", "8"),  # two pots side by side on one burner
    ],
)
def test_solves_what_needs_a_skill_of_its_own(env: LiberoEnv, suite: str, cell: str, task: str) -> None:
    outcome = play(env, cell, task, suite)
    assert outcome.success, (outcome.failure, outcome.events["goal"])


def test_same_every_time(env: LiberoEnv) -> None:
    first, second = (play(env, "object_pos", "9") for _ in range(2))
    assert (first.end_hash, first.steps, first.success) == (second.end_hash, second.steps, True)
