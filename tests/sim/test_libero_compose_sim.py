"""Two LIBERO-Goal tasks in one episode: the oracle does them under two sentences and under one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apt_bench.envs.libero import LiberoEnv
from apt_bench.envs.libero.compose import SEPARATOR
from apt_bench.policies.oracle import OraclePolicy
from apt_bench.suites import load_suite

pytestmark = pytest.mark.sim
STOVE, PLATE, BOTTLE = (
    "put_the_bowl_on_the_stove",
    "put_the_bowl_on_the_plate",
    "put_the_wine_bottle_on_the_rack",
)


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = LiberoEnv()
    yield env
    env.close()


@pytest.mark.parametrize(
    ("cell", "first", "second"),
    [
        ("coaching", STOVE, BOTTLE),
        ("coaching", STOVE, PLATE),  # takes the bowl off the stove again
        ("chaining", STOVE, PLATE),
    ],
)
def test_the_oracle_does_both(env: LiberoEnv, cell: str, first: str, second: str) -> None:
    spec = load_suite("libero_compose").select([cell], [f"{first}{SEPARATOR}{second}"], episodes=1)[0]
    policy = OraclePolicy()
    policy.reset([spec])
    observation = env.reset(spec, privileged=True)
    said = {observation.instruction: 0}
    while not env.outcome().done:
        observation = env.step_chunk(policy.act([observation])[0])
        said.setdefault(observation.instruction, env.outcome().steps)
    outcome = env.outcome()
    assert outcome.success, outcome
    assert outcome.events["scores"] == {"t1": True, "t2": True, "t1_t2": True}
    one, two = outcome.events["part_steps"]
    assert one < two == outcome.steps
    if cell == "coaching":
        assert said == {spec.prompts["text"]: 0, spec.prompts["second"]: one}
    else:
        assert list(said) == ["put the bowl on the stove, then put the bowl on the plate"]
    goal = outcome.events["goal"]
    assert len(goal) == 2
    assert goal[f"on(akita_black_bowl_1, {'plate_1' if second == PLATE else 'flat_stove_1_cook_region'})"][
        "last"
    ]
