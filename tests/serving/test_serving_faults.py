"""Clients that misbehave do not disturb the others; a stop answers what is being computed."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import connect

from apt_bench.core.errors import UserError
from apt_bench.policies.guard import guard
from apt_bench.policies.oracle import OraclePolicy
from apt_bench.policies.simple import RandomPolicy
from apt_bench.serving.episodes import Episodes
from apt_bench.serving.listener import Listener
from apt_bench.serving.session import ServedPolicy, check_servable
from apt_bench.wire import openpi as wire
from tests.serving.helpers import SESSIONS, STATE, SeeingPolicy, at_once, serving
from tests.serving.test_openpi import chunks
from tests.serving.test_vla_eval import actions

HANDSHAKE = (
    "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def raw(address: str, *parts: bytes) -> socket.socket:
    """A client without a library, which sends these bytes after the handshake."""
    host, port = address.split(":")
    found = socket.create_connection((host, int(port)), 10)
    found.sendall(HANDSHAKE.encode())
    assert b"101" in found.recv(4096)
    for part in parts:
        found.sendall(part)
    return found


@pytest.mark.parametrize(("protocol", "ask"), [("openpi", chunks), ("vla-eval", actions)])
def test_broken_clients_do_not_disturb_the_others(protocol, ask):
    policy = SeeingPolicy()
    half = bytes([0x82, 0xFF]) + (10**6).to_bytes(8, "big") + b"mask" + b"half of a message"
    with serving(policy, protocol) as address:
        alone = ask(address, [1, 2, 3], "task")
        host, port = address.split(":")
        no_handshake = socket.create_connection((host, int(port)), 10)
        no_handshake.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        stalled = raw(address, half)
        vanished = raw(address, half)
        vanished.close()
        unmasked = raw(address, bytes([0x82, 0x01, 0x00]))  # a client must mask
        with connect(f"ws://{address}") as endless:
            endless.send(b"\x00" * 1000)
            np.testing.assert_array_equal(np.array(ask(address, [1, 2, 3], "task")), np.array(alone))
        for one in (no_handshake, stalled, unmasked):
            one.close()
        np.testing.assert_array_equal(np.array(ask(address, [1, 2, 3], "task")), np.array(alone))


def test_a_message_that_claims_to_be_huge_is_refused():
    with serving(RandomPolicy(), "openpi") as address:
        huge = raw(address, bytes([0x82, 0xFF]) + (2**40).to_bytes(8, "big") + b"mask")
        huge.settimeout(10)
        received = b""
        while part := huge.recv(4096):
            received += part
        assert (1009).to_bytes(2, "big") in received  # message too big


@pytest.mark.parametrize("frame", [b"", b"garbage", b"\x93\x01\x02\x03", b"\xdf\xff\xff\xff\xff", "text"])
def test_garbage_is_answered_with_an_error(frame):
    with serving(RandomPolicy(), "openpi") as address, connect(f"ws://{address}") as client:
        client.recv(10)
        client.send(frame)
        assert "WireError" in client.recv(10).splitlines()[-1]
        with pytest.raises(ConnectionClosedError):
            client.recv(10)


def test_64_clients_at_once():
    policy = SeeingPolicy()
    with serving(policy, "vla-eval") as address:
        before = threading.active_count()
        alone = actions(address, [5, 6], "task")
        found = at_once([lambda: actions(address, [5, 6], "task")] * 64)
        for one in found:
            np.testing.assert_array_equal(np.array(one), np.array(alone))
        end = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < end:
            time.sleep(0.05)
        assert threading.active_count() <= before  # the threads of clients that have gone end
    assert max(policy.batches) > 1


def test_an_episode_of_a_client_that_vanished_is_ended():
    policy = SeeingPolicy()
    with serving(policy, "openpi") as address:
        client = connect(f"ws://{address}").__enter__()
        client.recv(10)
        image = np.zeros((8, 8, 3), np.uint8)
        request = {"observation/image": image, "observation/wrist_image": image, "observation/state": STATE}
        client.send(wire.encode({**request, "prompt": "task"}))
        client.recv(10)
        client.socket.shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + 10
        while not policy.finished and time.monotonic() < end:
            time.sleep(0.05)
    assert [name for name, _ in policy.finished] == [policy.episodes[0].id]


class SlowPolicy(SeeingPolicy):
    def act(self, observations):
        time.sleep(1.0)
        return super().act(observations)


def test_a_stop_sends_the_reply_that_is_being_computed_and_says_goodbye():
    kind = SESSIONS["openpi"]
    served = ServedPolicy(guard(SlowPolicy()), Episodes(None))
    listener = Listener(lambda: kind(served), kind.health, "127.0.0.1", 0)
    listener.start()
    image = np.zeros((8, 8, 3), np.uint8)
    request = {"observation/image": image, "observation/wrist_image": image, "observation/state": STATE}
    with (
        connect(f"ws://127.0.0.1:{listener.port}") as client,
        connect(f"ws://127.0.0.1:{listener.port}") as idle,
    ):
        client.recv(10), idle.recv(10)
        client.send(wire.encode({**request, "prompt": "task"}))
        time.sleep(0.3)
        listener.stop()
        assert wire.decode(client.recv(10))["actions"].shape == (5, 7)
        for one in (client, idle):
            with pytest.raises(ConnectionClosedOK) as closed:
                one.recv(10)
            assert closed.value.rcvd.code == 1001
    with pytest.raises(OSError, match="refused"):
        connect(f"ws://127.0.0.1:{listener.port}").__enter__()


def test_a_web_page_cannot_connect():
    with serving(RandomPolicy(), "openpi") as address, pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://{address}", origin="https://example.com").__enter__()


def test_a_port_in_use_is_the_users_error():
    with serving(RandomPolicy(), "openpi") as address, pytest.raises(UserError, match="in use"):
        Listener(lambda: None, ("/", "", ""), "127.0.0.1", int(address.split(":")[1]))
    with pytest.raises(UserError, match="Choose another"):
        Listener(lambda: None, ("/", "", ""), "no.such.host.invalid", 0)


def test_a_privileged_policy_is_refused():
    with pytest.raises(UserError, match="reads the simulator's state"):
        check_servable(OraclePolicy.spec)
