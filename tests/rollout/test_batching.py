from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from apt_bench.core.errors import PolicyFault
from apt_bench.envs.base import AGENTVIEW, Observation
from apt_bench.rollout.batching import Batcher
from tests.toy import HostedBadPolicy, HostedPushPolicy, PushPolicy


def observations(n: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(
            images={AGENTVIEW: rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)},
            state=rng.normal(size=8).astype(np.float32),
            instruction=f"push the puck to place {i}",
            episode=f"toy/push/left/init{i}/seed7/default",
            step=i,
        )
        for i in range(n)
    ]


def ask_together(batcher: Batcher, seen: list[Observation]) -> list[object]:
    with ThreadPoolExecutor(len(seen)) as pool:
        return [answer for answer, _ in pool.map(batcher.act, seen)]


def test_a_batch_answers_each_its_own():
    seen, policy = observations(8), HostedPushPolicy()
    together = ask_together(Batcher(policy, clients=8, window=0.5), seen)
    assert sorted(policy.batches, reverse=True)[0] > 1
    assert max(policy.batches) <= policy.spec.resources.max_batch
    alone = [HostedPushPolicy().act([o])[0] for o in seen]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({a.tobytes() for a in together}) == 8


def test_one_bad_episode_does_not_fail_its_neighbours():
    seen, policy = observations(4), HostedBadPolicy("raise", init=2)
    answers = ask_together(Batcher(policy, clients=4, window=5), seen)
    assert policy.batches[0] == 4
    assert [isinstance(a, PolicyFault) for a in answers] == [False, False, True, False]
    np.testing.assert_array_equal(answers[3], PushPolicy().act([seen[3]])[0])


def test_a_full_batch_does_not_wait():
    batcher = Batcher(HostedPushPolicy(), clients=1, window=1000)
    answer, _ = batcher.act(observations(1)[0])
    assert answer.shape == (4, 7)
