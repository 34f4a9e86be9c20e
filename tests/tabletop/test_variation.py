"""Varied motions are the same for the same episode, differ for another seed, and still solve the task."""

import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.policies.oracle import OraclePolicy
from apt_bench.suites import load_suite

pytestmark = pytest.mark.sim


def path(env, spec, policy):
    """Return the positions of the hand, (T, 3) in m, and the outcome."""
    observation = env.reset(spec, privileged=True)
    policy.reset([spec])
    points = []
    while not env.done:
        points.append(observation.state[:3])
        observation = env.step_chunk(policy.act([observation])[0], render=False)
    return np.array(points), env.outcome()


@pytest.mark.parametrize(("suite", "cell"), [("rigid_pick_place", "train"), ("composite", "train_store")])
def test_varied_motions_are_reproducible_and_differ(env, suite, cell):
    first, second = load_suite(suite).select([cell], episodes=2)[:2]
    policy = OraclePolicy(variation=1.0)
    one, outcome = path(env, first, policy)
    assert outcome.success
    path(env, second, policy)  # an episode in between has no influence
    again, same = path(env, first, policy)
    assert same.end_hash == outcome.end_hash
    assert np.array_equal(one, again)
    other, _ = path(env, first, OraclePolicy(variation=1.0, seed=1))
    plain, _ = path(env, first, OraclePolicy())
    for a, b in ((one, other), (one, plain)):
        assert _gap(a, b) > 0.015


def _gap(a, b):
    """The largest distance (m) of a point of path `a` from path `b`."""
    return max(float(np.linalg.norm(b - point, axis=1).min()) for point in a)


def test_without_variation_the_seed_does_not_matter(env):
    spec = load_suite("rigid_pick_place").select(["so"], episodes=1)[0]
    ends = {path(env, spec, OraclePolicy(seed=seed))[1].end_hash for seed in (0, 1)}
    assert len(ends) == 1


@pytest.mark.parametrize("variation", ["much", -1, 3])
def test_a_wrong_amount_is_refused(variation):
    with pytest.raises(UserError, match=r"variation is .*must be"):
        OraclePolicy(variation=variation)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_varied_motions_still_succeed(env):
    specs = load_suite("rigid_pick_place").select(["so"])
    won = sum(path(env, spec, OraclePolicy(variation=1.0))[1].success for spec in specs)
    assert won >= 0.95 * len(specs)
