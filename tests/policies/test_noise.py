"""Noise depends on the scene: the same scene has the same noise under another instruction and in another cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from apt_bench.analysis.run import load_run
from apt_bench.core.config import load_object
from apt_bench.envs.base import Env, Observation
from apt_bench.policies.base import PolicySpec, Resources, noise_seed
from apt_bench.policies.oracle import OraclePolicy
from apt_bench.policies.registry import find_policy
from apt_bench.policies.simple import RandomPolicy
from apt_bench.reporting.probe_table import probe_table
from apt_bench.rollout.episode import LocalClient, run_episode
from apt_bench.rollout.runner import RunOptions, run
from apt_bench.suites import EpisodeSpec, load_suite
from tests.toy import PushPolicy, ToyEnv

SUITE, TOY = "rigid_pick_place", "tests/toy_suite.yaml"


@pytest.fixture(scope="module")
def env() -> Iterator[Env]:
    made = load_object(load_suite(SUITE).env)()
    yield made
    made.close()


def spec(init: int = 0) -> EpisodeSpec:
    return load_suite(SUITE).select(["so"], ["0"], episodes=2)[init]


def elsewhere(observation: Observation) -> Observation:
    """The same decision in an episode of another cell and prompt."""
    return dataclasses.replace(observation, episode="suite/other_cell/task/init0/seed7/null")


def test_the_seed_of_noise_is_that_of_scene_step_and_owner() -> None:
    base = Observation({}, np.zeros(8, np.float32), "go", "a", 3, noise_key="scene")
    assert noise_seed(base) == noise_seed(elsewhere(base))
    assert 0 <= noise_seed(base) < 2**63
    others = [dataclasses.replace(base, step=4), dataclasses.replace(base, noise_key="another")]
    assert len({noise_seed(base), noise_seed(base, 1), *map(noise_seed, others)}) == 4


def test_random_draws_the_same_under_another_sentence_and_other_elsewhere() -> None:
    here, policy = Observation({}, np.zeros(8, np.float32), "go", "a", 3, noise_key="scene"), RandomPolicy()
    mute = dataclasses.replace(elsewhere(here), instruction="")
    (first,), (second,) = policy.act([here]), policy.act([mute])
    np.testing.assert_array_equal(first, second)
    for other, obs in (
        (policy, dataclasses.replace(here, noise_key="another")),
        (RandomPolicy(seed=1), here),
    ):
        assert not np.array_equal(other.act([obs])[0], first)


def test_apt_answers_bit_for_bit_the_same_to_the_same_sentence(env: Env) -> None:
    policy = find_policy("apt_mini", ("device=cpu", "sample_steps=2")).load()
    assert (
        policy.spec.resources.max_batch == 1
    )  # a run asks for one at a time: a batch is equal up to rounding only
    obs = env.reset(spec(), policy.spec.cameras)
    (first,) = policy.act([obs])
    np.testing.assert_array_equal(policy.act([elsewhere(obs)])[0], first)
    assert not np.array_equal(policy.act([dataclasses.replace(obs, noise_key="another")])[0], first)
    assert not np.array_equal(policy.act([dataclasses.replace(elsewhere(obs), instruction="")])[0], first)
    assert find_policy("apt_mini", ("device=cpu", "max_batch=8")).load().spec.resources.max_batch == 8


def test_bfloat16_predicts_slightly_other_actions(env: Env) -> None:
    exact, half = (
        find_policy("apt_mini", ("device=cpu", f"precision={name}")).load() for name in ("fp32", "bf16")
    )
    obs = env.reset(spec(), exact.spec.cameras)
    (one,), (other,) = exact.act([obs]), half.act([obs])
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one[:, :3], other[:, :3], atol=0.01)  # m


def test_the_oracles_variation_is_that_of_the_scene(env: Env) -> None:
    def actions(change: Callable[[Observation], Observation]) -> list[np.ndarray]:
        policy = OraclePolicy(variation=1.0)
        obs, done = change(env.reset(spec(), (), True)), []
        for _ in range(12):
            done += policy.act([obs])
            obs = change(env.step_chunk(done[-1], render=False))
        return done

    plain = actions(lambda obs: obs)
    np.testing.assert_array_equal(actions(elsewhere), plain)
    assert not np.array_equal(actions(lambda obs: dataclasses.replace(obs, noise_key="another")), plain)


def probed(
    out: Path, suite: str, policy: str, cell: str, tasks: tuple[str, ...] = (), episodes: int = 2
) -> None:
    """Run a cell under its own prompt and under the probe `null`."""
    options = RunOptions.of(
        suite=suite,
        policy=policy,
        cells=(cell,),
        tasks=tasks,
        episodes=episodes,
        probes=("null",),
        workers="0",
        out=out,
    )
    run(options, Console(quiet=True))


def test_a_probe_of_random_has_no_sensitivity(tmp_path: Path) -> None:
    probed(tmp_path / "run", SUITE, "random", "so", tasks=("0",))
    table = probe_table([load_run(tmp_path / "run")])
    assert table
    assert [(r.values["probe"], r.values["pairs"], r.values["sensitivity"].value) for r in table.rows] == [
        ("repeat", 2, 0.0),
        ("null", 2, 0.0),
    ]
    assert any("changed" in note and "in 0% of 2 episodes" in note for note in table.notes)


def test_the_loop_fills_in_what_an_environment_leaves_empty() -> None:
    """Otherwise all scenes would have the same noise."""
    seen: list[Observation] = []

    class Recorder(PushPolicy):
        def _one(self, o: Observation) -> np.ndarray:
            seen.append(o)
            return super()._one(o)

    env, policy = ToyEnv(), Recorder()
    specs = load_suite(TOY).select(["push"], episodes=2)
    for one in specs:
        run_episode(env, LocalClient(policy), one, policy.spec, execute=3)
    assert not env.reset(specs[0]).noise_key
    assert len(seen) > len(specs)
    assert {(o.episode, o.noise_key) for o in seen} == {(s.key.id, s.noise_key) for s in specs}


class SceneNoise(PushPolicy):
    """Ignores the instruction; its noise is seeded as docs/running.md recommends."""

    spec = PolicySpec("scene_noise", horizon=4, execute=3, resources=Resources(placement="worker"))

    def _one(self, o: Observation) -> np.ndarray:
        return np.random.default_rng(noise_seed(o)).uniform(-1, 1, (4, 7))


class OwnNoise(SceneNoise):
    """Ignores the instruction; its noise has no seed."""

    def _one(self, o: Observation) -> np.ndarray:
        return np.random.default_rng().uniform(-1, 1, (4, 7))


@pytest.mark.parametrize(("policy", "changed"), [("SceneNoise", 0.0), ("OwnNoise", 1.0)])
def test_the_noise_floor_tells_noise_from_reading(policy: str, changed: float, tmp_path: Path) -> None:
    probed(tmp_path / "run", TOY, f"tests.policies.test_noise:{policy}", "push")
    table = probe_table([load_run(tmp_path / "run")])
    assert table
    values: dict[str, Any] = {str(r.values["probe"]): r.values for r in table.rows}
    assert values["null"]["sensitivity"].value == values["null"]["floor"].value == changed
    assert values["repeat"]["sensitivity"].value == changed


def test_a_run_without_repeats_says_that_its_noise_was_not_measured(tmp_path: Path) -> None:
    probed(tmp_path / "run", TOY, "tests.policies.test_noise:SceneNoise", "push", episodes=1)
    path = tmp_path / "run" / "episodes.jsonl"
    lines = [line for line in path.read_text().splitlines() if '"repeat"' not in line]
    path.write_text("".join(f"{line}\n" for line in lines))
    table = probe_table([load_run(tmp_path / "run")])
    assert table
    assert [r.values["floor"] for r in table.rows] == ["not measured"]
    assert any("noise floor is not measured yet" in note for note in table.notes)
