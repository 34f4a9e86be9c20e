"""Several observations in one request of starVLA's protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.envs.base import Observation
from apt_bench.policies.registry import find_policy
from apt_bench.rollout.batching import Batcher
from tests.policies.remote.kinds import KINDS, episodes, observation
from tests.policies.remote.servers import CHUNK, Seen, StarVla, Wrong

pytestmark = pytest.mark.usefixtures("hurry")
KIND = KINDS["starvla"]


def vary(seen: Seen) -> np.ndarray:
    """Depends on the image and on the prompt."""
    if "malformed" in seen.prompt:
        raise Wrong("a malformed example")
    return np.clip(CHUNK * (0.5 + seen.agentview.mean() / 300) + len(seen.prompt) / 1000, -1, 1)


def observations() -> list[Observation]:
    return [
        observation(episode=episode.id, instruction=f"{episode.prompt}{'!' * i}")
        for i, episode in enumerate(episodes(number=4))
    ]


@pytest.fixture
def server() -> Iterator[StarVla]:
    with StarVla(answer=vary) as server:
        yield server


def together(policy: Any, given: Sequence[Observation]) -> list[Any]:
    """The answers to requests of several workers that arrive together."""
    batcher = Batcher(policy, clients=len(given), window=5)
    with ThreadPoolExecutor(len(given)) as pool:
        return [answer for answer, _ in pool.map(batcher.act, given)]


def test_a_batch_is_one_request_and_gives_what_single_requests_give(server: StarVla) -> None:
    batched, single = KIND.policy(server, batch=4), KIND.policy(server)
    found = together(batched, observations())
    assert [len(request["examples"]) for request in server.requests] == [4]
    alone = [single.act([one])[0] for one in observations()]
    np.testing.assert_array_equal(found, alone)
    assert len({chunk.tobytes() for chunk in found}) == 4
    for episode in episodes(number=4):
        assert batched.notes(episode)["requests"] == 1
    assert [len(request["examples"]) for request in server.requests[1:]] == [1] * 4


def test_a_malformed_example_does_not_fail_the_others(server: StarVla) -> None:
    given = observations()
    given[1] = observation(instruction="malformed")
    found = together(KIND.policy(server, batch=4), given)
    assert [isinstance(one, ServerLost) for one in found] == [False, True, False, False]
    assert "a malformed example" in str(found[1])
    np.testing.assert_array_equal(found[3], KIND.policy(server).act([given[3]])[0])


def test_nan_in_one_answer_does_not_fail_the_others(server: StarVla) -> None:
    server.answer = lambda seen: vary(seen) * (np.nan if seen.prompt.endswith("!!") else 1)
    given = observations()[:3]
    found = together(KIND.policy(server, batch=4), given)
    assert [isinstance(one, PolicyFault) for one in found] == [False, False, True]
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["drop", "hang", "garbage"])
def test_a_lost_server_is_lost_for_all(server: StarVla, fault: str) -> None:
    policy = KIND.policy(server, batch=4)
    server.fault = fault
    found = together(policy, observations())
    assert all(isinstance(one, ServerLost) for one in found)


def test_answers_for_another_number_of_examples(server: StarVla) -> None:
    policy = KIND.policy(server, batch=4)
    server._chunk_of = lambda example: np.zeros((2, 8, 7))[0]  # type: ignore[method-assign]
    right = server._frame
    server._frame = lambda **parts: right(**{**parts, "data": {"actions": np.zeros((2, 8, 7))}})  # type: ignore[method-assign]
    with pytest.raises(PolicyFault, match=r"shape \(2, 8, 7\) instead of \(4, n, 7\)"):
        policy.act(observations())


def test_where_it_runs() -> None:
    def placement(**args: Any) -> str:
        return find_policy("langforce", args, servers=["host"]).placement

    assert (placement(), placement(batch=1), placement(batch=8)) == ("worker", "worker", "actor")
    assert find_policy("pi05", servers=["host"]).placement == "worker"
    for value in (0, "many"):
        with pytest.raises(UserError, match="max_batch"):
            placement(batch=value)
