"""`apt-bench serve --protocol openpi`, with apt-bench's own client and with frames of the genuine one."""

from __future__ import annotations

import http.client

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from apt_bench.core.errors import ServerLost
from apt_bench.envs.base import ACTION_SCALE, AGENTVIEW, WRIST
from apt_bench.policies.remote.openpi import OpenPiPolicy
from apt_bench.policies.simple import RandomPolicy, ZeroPolicy
from apt_bench.wire import openpi as wire
from tests.serving.helpers import (
    GOLDEN,
    STATE,
    PosePolicy,
    SeeingPolicy,
    ask,
    at_once,
    episode,
    observation,
    serving,
)


def client(address: str, size: int = 256, horizon: int = 5) -> OpenPiPolicy:
    return OpenPiPolicy(address, horizon=horizon, execute=3, size=size)


def chunks(address: str, shades: list[int], instruction: str = "pick it up") -> list[np.ndarray]:
    return ask(client(address), shades, instruction)


def test_the_policy_gets_what_the_client_has_and_the_client_its_chunk():
    policy = SeeingPolicy()
    with serving(policy, "openpi") as address:
        remote = client(address)
        remote.reset([episode()])
        given = observation()
        (chunk,) = remote.act([given])
        remote.act([given])
        assert remote.metadata["policy"] == "seeing"
        assert (remote.metadata["horizon"], remote.metadata["execute"]) == (5, 3)
        remote.close()
    first, second = policy.seen
    for name in (AGENTVIEW, WRIST):
        np.testing.assert_array_equal(first.images[name], given.images[name])
    np.testing.assert_array_equal(first.state, STATE)
    assert first.state.dtype == np.float32
    assert (first.instruction, first.step, second.step) == ("pick it up", 0, 3)
    assert first.episode == second.episode == policy.episodes[0].id
    np.testing.assert_array_equal(chunk, np.clip(policy.one(first), -1, 1))  # float64: every bit


def test_other_sizes_are_resized_to_256():
    policy = SeeingPolicy()
    with serving(policy, "openpi") as address:
        remote = client(address, size=224)
        remote.reset([episode()])
        remote.act([observation(shade=70)])
        remote.close()
    assert policy.seen[0].images[AGENTVIEW].shape == (256, 256, 3)
    assert (policy.seen[0].images[AGENTVIEW] == 70).all()


def test_four_clients_at_once_get_what_they_get_one_after_the_other():
    shades = [[10 * i + j for j in range(6)] for i in range(4)]
    policy = SeeingPolicy()
    with serving(policy, "openpi") as address:
        alone = [chunks(address, s, f"task {i}") for i, s in enumerate(shades)]
        assert set(policy.batches) == {1}
        calls = [lambda i=i, s=s: chunks(address, s, f"task {i}") for i, s in enumerate(shades)]
        together = at_once(calls)
    assert max(policy.batches) > 1  # requests were batched
    np.testing.assert_array_equal(np.array(together), np.array(alone))


def test_states_in_the_antipodal_form_are_made_canonical():
    policy = SeeingPolicy()
    states = np.tile(STATE, (4, 1))
    states[:, 3:6] = [[3.1403, 0, 0], [3.15, 0, 0], [3.15 - 2 * np.pi, 0, 0], [-3.1403, -0.0008, 0.0892]]
    with serving(policy, "openpi") as address:
        remote = client(address)
        for state in states:
            remote.act([observation(state=state)])
        remote.close()
    made = np.array([o.state for o in policy.seen])
    np.testing.assert_array_equal(made[:2], states[:2])  # robosuite's form
    np.testing.assert_allclose(made[2], states[1], atol=1e-6)
    assert made[3, 3] > 3.13
    assert made[3, 5] < 0


def test_a_new_instruction_begins_an_episode():
    policy = SeeingPolicy()
    with serving(policy, "openpi") as address:
        remote = client(address)
        for instruction in ("first", "first", "second"):
            remote.act([observation(instruction)])
        remote.close()
    assert [e.prompt for e in policy.episodes] == ["first", "second"]
    assert [o.step for o in policy.seen] == [0, 3, 0]
    keys = [o.noise_key for o in policy.seen]
    assert keys[0] == keys[1] != keys[2]
    assert [e for e, _ in policy.finished] == [e.id for e in policy.episodes]
    assert not any(outcome.done for _, outcome in policy.finished)  # the client did not say how they ended


def test_the_noise_of_an_episode_depends_on_its_number_in_the_connection_only():
    policy = SeeingPolicy()
    with serving(policy, "openpi") as address:
        first, again = chunks(address, [1], "one task"), chunks(address, [1], "this task")
    assert policy.seen[0].noise_key == policy.seen[1].noise_key
    assert policy.seen[0].episode != policy.seen[1].episode
    np.testing.assert_array_equal(first[0][:, 6], again[0][:, 6])


def test_poses_become_deltas_by_chaining():
    with serving(PosePolicy(), "openpi") as address:
        (chunk,) = chunks(address, [1])
    np.testing.assert_allclose(chunk[:, 0] * ACTION_SCALE[0], 0.01, atol=1e-7)
    np.testing.assert_allclose(chunk[:, 1:6], 0, atol=1e-6)
    assert (chunk[:, 6] == 1).all()


def test_a_pose_beyond_one_step_keeps_the_rest_for_the_next_step():
    class Far(PosePolicy):
        def one(self, o):
            chunk = super().one(o)
            chunk[:, 0] = o.state[0] + 0.12
            return chunk

    with serving(Far(), "openpi") as address:
        (chunk,) = chunks(address, [1])
    np.testing.assert_allclose(chunk[:, 0], [1, 1, 0.4, 0, 0], atol=1e-5)


@pytest.mark.parametrize("name", ["04_request_8x8.bin"])
def test_requests_of_the_genuine_client_are_answered(name):
    frame = (GOLDEN / "openpi" / name).read_bytes()
    with serving(ZeroPolicy(), "openpi") as address, connect(f"ws://{address}", compression=None) as socket:
        assert isinstance(wire.decode(socket.recv(10)), dict)
        for again in (False, True):
            socket.send(frame)
            reply = wire.decode(socket.recv(10))
            assert reply["actions"].shape == (10, 7)
            assert reply["server_timing"]["infer_ms"] >= 0
            assert ("prev_total_ms" in reply["server_timing"]) == again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation/wrist_image": None}, "observation/wrist_image"),
        ({"observation/image": np.zeros((224, 200, 3), np.uint8)}, "200x224"),
        ({"observation/image": np.zeros((224, 224), np.uint8)}, "RGB image"),
        ({"observation/image": np.zeros((224, 224, 3), np.float32)}, "float32"),
        ({"observation/state": np.zeros(7)}, "8 finite numbers"),
        ({"observation/state": np.full(8, np.nan)}, "8 finite numbers"),
        ({"observation/state": "left"}, "no array of numbers"),
        ({"prompt": 3}, "must be text"),
        ({"prompt": "raise"}, "the toy policy is confused"),
        ({"prompt": "refuse"}, "wants another observation"),
    ],
)
def test_an_error_is_a_text_frame_and_closes_with_1011(change, message):
    request = {
        "observation/image": np.zeros((224, 224, 3), np.uint8),
        "observation/wrist_image": np.zeros((224, 224, 3), np.uint8),
        "observation/state": STATE,
        "prompt": "pick it up",
    }
    request = {k: v for k, v in {**request, **change}.items() if v is not None}
    with serving(SeeingPolicy(), "openpi") as address, connect(f"ws://{address}", compression=None) as socket:
        socket.recv(10)
        socket.send(wire.encode(request))
        text = socket.recv(10)
        assert isinstance(text, str)
        assert message in text.splitlines()[-1]
        with pytest.raises(ConnectionClosedError) as closed:
            socket.recv(10)
        assert closed.value.rcvd.code == 1011


def test_our_client_reports_the_servers_error():
    with serving(SeeingPolicy(), "openpi") as address:
        remote = client(address)
        with pytest.raises(ServerLost, match="the toy policy is confused"):
            remote.act([observation("raise")])


def test_a_bad_request_does_not_fail_the_others_of_its_batch():
    with serving(SeeingPolicy(), "openpi") as address:
        alone = [chunks(address, [i]) for i in range(3)]
        for bad in ("raise", "refuse"):
            calls = [lambda i=i: chunks(address, [i]) for i in range(3)]
            *good, failed = at_once([*calls, lambda bad=bad: chunks(address, [9], bad)])
            assert isinstance(failed, ServerLost)
            np.testing.assert_array_equal(np.array(good), np.array(alone))


def test_healthz():
    with serving(RandomPolicy(), "openpi") as address:
        answer = http.client.HTTPConnection(address, timeout=10)
        answer.request("GET", "/healthz")
        found = answer.getresponse()
        assert (found.status, found.read()) == (200, b"OK\n")
        assert found.headers["Content-Type"].startswith("text/plain")


def test_no_compression_and_any_path():
    with serving(RandomPolicy(), "openpi") as address, connect(f"ws://{address}/v1/openpi") as socket:
        assert not socket.protocol.extensions  # the client offered compression
        socket.recv(10)
