"""Every way in which a server can fail: whose fault it is, what the message says, and that it is found in time."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.envs.base import Outcome
from apt_bench.policies.guard import guard
from apt_bench.policies.remote import links, openpi
from apt_bench.policies.remote.links import addresses, expand_ports
from tests.policies.remote.groot_server import Groot
from tests.policies.remote.kinds import KINDS, episodes, observation
from tests.policies.remote.rest_servers import OpenVla
from tests.policies.remote.servers import OpenPi, StarVla, VlaEval
from tests.policies.remote.sockets import deaf, free_port, listener

pytestmark = [pytest.mark.medium, pytest.mark.usefixtures("hurry")]
WEBSOCKETS = ("openpi", "starvla", "vla-eval")
STATUS = (*WEBSOCKETS, "openvla", "oft")


@contextmanager
def soon(seconds: float = 6) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def once_more(policy: Any) -> None:
    policy.reset(episodes()[1:])
    policy.act([observation()])


FAULTS = ("error", "drop", "hang", "garbage", "shape", "nan", "words")
IN_AN_EPISODE = [
    *((name, fault) for name in KINDS for fault in FAULTS),
    *((name, "text") for name in WEBSOCKETS),
]


@pytest.mark.parametrize(("name", "fault"), IN_AN_EPISODE)
def test_a_fault_in_the_middle_of_an_episode(name: str, fault: str) -> None:
    kind = KINDS[name]
    policy_at_fault = fault in ("shape", "nan", "words")
    with kind.server() as server:
        policy = guard(kind.policy(server))
        policy.reset(episodes()[:1])
        policy.act([observation()])
        server.fault = fault
        with soon(), pytest.raises(PolicyFault if policy_at_fault else ServerLost) as stop:
            policy.act([observation()])
        server.fault = ""
        assert len(str(stop.value)) < 600
        if policy_at_fault:
            policy.reset(episodes()[1:])  # the connection is as good as before
            policy.act([observation()])
            return
        assert server.url in str(stop.value)
        if name not in ("openvla", "oft"):  # an HTTP request has a connection of its own, where need be
            with pytest.raises(ServerLost):  # never an answer that was meant for another question
                once_more(policy)
        again = guard(kind.policy(server))
        again.reset(episodes()[1:])
        again.act([observation()])
        again.close()


def test_the_servers_own_words_are_in_the_message() -> None:
    for name in KINDS:
        with KINDS[name].server() as server:
            policy = KINDS[name].policy(server)
            policy.reset(episodes()[:1])
            server.fault = "error"
            expected = {"groot": "a tokenizer failed", "openvla": "'error'", "oft": "'error'"}
            with pytest.raises(ServerLost, match=expected.get(name, "out of memory")):
                policy.act([observation()])


@pytest.mark.parametrize("name", KINDS)
def test_nobody_is_there(name: str) -> None:
    with (
        soon(),
        pytest.raises(UserError, match=r"cannot reach its server.*no server answers.*Start the server"),
    ):
        KINDS[name].load(f"127.0.0.1:{free_port()}")


@pytest.mark.parametrize("name", KINDS)
def test_somebody_is_there_who_says_nothing(name: str) -> None:
    with listener() as port, soon(), pytest.raises(UserError, match=r"did not answer|no server answers"):
        KINDS[name].load(f"127.0.0.1:{port}")


@pytest.mark.parametrize(("name", "other"), itertools.permutations(KINDS, 2))
def test_another_protocols_server(name: str, other: str) -> None:
    with (
        KINDS[other].server() as server,
        soon(),
        pytest.raises(UserError, match=f"127.0.0.1:{server.port}") as stop,
    ):
        KINDS[name].load(f"127.0.0.1:{server.port}")
    assert not isinstance(stop.value, PolicyFault)
    assert not server.seen


@pytest.mark.parametrize("name", KINDS)
def test_the_scheme_of_another_protocol(name: str) -> None:
    scheme = "tcp" if name != "groot" else "ws"
    with pytest.raises(UserError, match=rf"uses .*, not {scheme}"):
        KINDS[name].load(f"{scheme}://127.0.0.1:1")


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("name", STATUS)
def test_what_a_server_refuses_for_ever(name: str, status: int) -> None:
    with KINDS[name].server(status=status) as server, soon(), pytest.raises(UserError) as stop:
        KINDS[name].policy(server)
    assert f"HTTP {status}" in str(stop.value)
    assert ("APT_BENCH_API_KEY" in str(stop.value)) == (status != 404)


@pytest.mark.parametrize("status", [500, 502, 503])
@pytest.mark.parametrize("name", STATUS)
def test_a_server_that_is_not_ready(name: str, status: int) -> None:
    with (
        KINDS[name].server(status=status) as server,
        soon(),
        pytest.raises(ServerLost, match=f"HTTP {status}"),
    ):
        KINDS[name].policy(server)


@pytest.mark.parametrize("name", KINDS)
def test_a_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with KINDS[name].server(key="s3cret") as server:
        with soon(), pytest.raises(UserError, match="APT_BENCH_API_KEY"):
            KINDS[name].policy(server)
        monkeypatch.setenv("APT_BENCH_API_KEY", "s3cret")
        policy = KINDS[name].policy(server)
        policy.reset(episodes()[:1])
        policy.act([observation()])
        assert "s3cret" not in str(policy.spec.to_record())


@pytest.mark.parametrize("name", ["openpi", "starvla", "vla-eval"])
def test_a_late_greeting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS[name]
    with kind.server(late=0.3) as server:
        kind.policy(server).close()
    with kind.server(late=3) as late, kind.server() as ready:
        with soon(2), pytest.raises(ServerLost, match=r"did not answer within 0\.6 s"):
            kind.policy(late)
        policy = kind.load(late.url, ready.url)  # the next one is used
        policy.reset(episodes()[:1])
        policy.act([observation()])
        assert (len(late.seen), len(ready.seen)) == (0, 1)


def test_the_search_for_a_server_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apt_bench.policies.remote.server.CONNECTING_SECONDS", 1.0)
    with ExitStack() as stack:
        ports = [stack.enter_context(listener()) for _ in range(20)]
        with soon(4), pytest.raises(UserError, match=r"did not answer|no server answers"):
            KINDS["vla-eval"].load(*(f"127.0.0.1:{port}" for port in ports))


@pytest.mark.parametrize("name", KINDS)
def test_a_server_that_is_blocked_for_a_while_answers_in_the_end(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "REPLY_SECONDS", 10.0)
    with KINDS[name].server() as server:
        policy = KINDS[name].policy(server)
        policy.reset(episodes()[:1])
        server.block = 2.0
        policy.act([observation()])


@pytest.mark.slow
def test_a_server_that_compiles_its_model_for_45_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """openpi-client closes such a connection: its keepalive pings stay without an answer."""
    monkeypatch.setattr(links, "REPLY_SECONDS", 150.0)
    with OpenPi(block=45) as server:
        KINDS["openpi"].policy(server).act([observation()])


def test_a_server_that_stops_reading() -> None:
    """A message that fits into no buffer would wait for ever."""
    with deaf() as port:
        link = links.WebSocketLink(addresses(f"127.0.0.1:{port}", ("ws",), 1)[0])
        with soon(4), pytest.raises(ServerLost):
            link.send(bytes(64 * 2**20))
        link.close()


def closed(policy: Any, server: Any) -> None:
    """The server closes its connections, and the client has noticed it."""
    for connection in list(server._open):
        connection.close(1011)
    with soon(3):
        while policy.policy._link.is_open():
            time.sleep(0.01)


@pytest.mark.parametrize("name", WEBSOCKETS)
def test_a_server_that_closed_the_connection_between_two_episodes(name: str) -> None:
    """openpi's does so where its keepalive ping is answered late, for which a long reset of the scene suffices."""
    with KINDS[name].server() as server:
        policy = guard(KINDS[name].policy(server))
        for episode in episodes(number=3):
            policy.reset([episode])
            policy.act([observation(episode=episode.id)])
            assert "error" not in policy.finish(episode, Outcome(True, True, 1, "", ""))
            closed(policy, server)
        assert (server.clients, len(server.seen)) == (3, 3)
        server.greeting = {"model_server": "another"}
        with pytest.raises(ServerLost, match="has other metadata than before"):
            policy.reset(episodes()[:1])


@pytest.mark.parametrize("name", WEBSOCKETS)
def test_a_connection_is_not_opened_again_in_the_middle_of_an_episode(name: str) -> None:
    with KINDS[name].server() as server:
        policy = guard(KINDS[name].policy(server))
        policy.reset(episodes()[:1])
        policy.act([observation()])
        closed(policy, server)
        with pytest.raises(ServerLost):
            policy.act([observation()])
        with pytest.raises(ServerLost):
            once_more(policy)
        assert server.clients == 1


@pytest.mark.parametrize("name", ["openvla", "oft"])
def test_an_http_server_that_closed_an_idle_connection(name: str) -> None:
    """uvicorn does so after 5 s, which an environment needs for a scene."""
    with KINDS[name].server() as server:
        policy = KINDS[name].policy(server)
        for _ in range(3):
            server.forget()
            policy.act([observation()])
        assert len(server.seen) == 4  # the first is the blank one


def test_an_error_of_vla_evals_episode_start_is_not_taken_for_the_answer() -> None:
    with VlaEval() as server:
        policy = KINDS["vla-eval"].policy(server)
        server.refuse_episode = "episode_start"
        policy.reset(episodes()[:1])
        with pytest.raises(ServerLost, match="episode_start_failed"):
            policy.act([observation()])


def test_an_error_of_vla_evals_episode_end_does_not_cost_the_next_episode() -> None:
    with VlaEval() as server:
        policy = guard(KINDS["vla-eval"].policy(server))
        policy.reset(episodes()[:1])
        policy.act([observation()])
        server.refuse_episode = "episode_end"
        policy.finish(episodes()[0], Outcome(True, True, 1, "", ""))
        policy.reset(episodes()[1:])
        policy.act([observation()])


def spec(**formats: str) -> dict[str, Any]:
    return {"action_spec": {name: {"format": one} for name, one in formats.items()}}


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        ({"observation_params": {"absolute_action": True}}, "answers absolute poses"),
        (spec(position="absolute_xyz"), "position 'absolute_xyz'"),
        (spec(rotation="euler_xyz"), "rotation 'euler_xyz'"),
        (spec(gripper="width_m"), "the gripper as 'width_m'"),
        ({"protocol_version": 2}, "uses version 2 of vla-eval's protocol"),
    ],
)
def test_what_vla_eval_servers_offer_but_libero_cannot_execute(
    greeting: dict[str, Any], message: str
) -> None:
    with VlaEval(greeting=greeting) as server, pytest.raises(UserError, match=message):
        KINDS["vla-eval"].load(server.url)


def test_vla_eval_servers_without_a_chunk_size() -> None:
    with VlaEval() as server:
        server._frame = lambda kind, payload, seq: VlaEval._frame(  # type: ignore[method-assign]
            kind, {"actions": [payload["actions"]] * 4} if kind == "action" else payload, seq
        )
        policy = KINDS["vla-eval"].policy(server)
        policy.reset(episodes()[:1])
        with pytest.raises(PolicyFault, match=r"4 actions, and its horizon is 1.*horizon=4"):
            policy.act([observation()])
        policy = KINDS["vla-eval"].policy(server, horizon=4, execute=4)
        policy.reset(episodes()[:1])
        assert policy.act([observation()])[0].shape == (4, 7)


@pytest.mark.parametrize(
    ("greeting", "args", "message"),
    [
        ({}, {"unnorm_key": "frank"}, "no un-normalisation key 'frank'. Did you mean 'franka'"),
        (
            {"available_unnorm_keys": ["a", "b"], "default_unnorm_key": None},
            {},
            "several un-normalisation keys.*a, b",
        ),
        ({"action_chunk_size": 0}, {}, "no usable `action_chunk_size`"),
        ({"action_chunk_size": True}, {}, "no usable `action_chunk_size`"),
    ],
)
def test_what_starvla_servers_cannot_do(greeting: dict[str, Any], args: dict[str, Any], message: str) -> None:
    with StarVla(greeting=greeting) as server, pytest.raises(UserError, match=message):
        KINDS["starvla"].load(server.url, **args)


def test_a_starvla_server_that_answers_normalised_actions() -> None:
    with StarVla() as server:
        server._frame = lambda **parts: openpi.wire.encode(
            {"ok": True, "data": {"normalized_actions": [[[0.0] * 7]]}}
        )  # type: ignore[method-assign]
        with pytest.raises(UserError, match="Update the server"):
            KINDS["starvla"].policy(server).act([observation()])


def test_a_chunk_shorter_than_what_is_executed_of_it() -> None:
    with OpenPi() as server:
        server.steps = 3
        with pytest.raises(PolicyFault, match=r"3 actions, fewer than the 5.*execute=3"):
            KINDS["openpi"].policy(server).act([observation()])


def test_groot_of_another_embodiment() -> None:
    with Groot() as server:
        server.views = ("ego_view", "wrist_image")
        with pytest.raises(UserError, match="expects the images ego_view"):
            KINDS["groot"].policy(server)


def test_an_unknown_unnormalisation_key_of_openvla_is_found_before_the_first_episode() -> None:
    with (
        OpenVla() as server,
        pytest.raises(UserError, match="unknown un-normalisation key is a frequent cause"),
    ):
        KINDS["openvla"].load(server.url, unnorm_key="libero_moon")


def test_several_clients_at_once() -> None:
    with OpenPi() as server:
        errors: list[BaseException] = []

        def client() -> None:
            try:
                policy = KINDS["openpi"].policy(server)
                for _ in range(5):
                    policy.act([observation()])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert len(server.seen) == 20


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("host", "ws://host:8000"),
        ("host:1", "ws://host:1"),
        ("WSS://host:1/a/b/", "wss://host:1/a/b"),
        ("ws://[::1]:9", "ws://[::1]:9"),
        (" 10.0.0.1 ", "ws://10.0.0.1:8000"),
        ("ws://host/v1/realtime?x=1", "ws://host:8000/v1/realtime?x=1"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert addresses(text, ("ws", "wss"), 8000)[0].url == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ws://",
        "http://host",
        "host:port",
        "host:0",
        "host:70000",
        "ws://a b",
        "ws://user@host",
        "ws://[::1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError, match="--server"):
        addresses(text, ("ws", "wss"), 8000)


def test_ranges_of_ports() -> None:
    assert expand_ports("ws://h:8000-8002/x") == [f"ws://h:{port}/x" for port in (8000, 8001, 8002)]
    assert expand_ports("ws://[::1]:8000-8001") == ["ws://[::1]:8000", "ws://[::1]:8001"]
    assert expand_ports("my-host-1") == ["my-host-1"]
    for text in ("h:8002-8000", "h:1-60000", "h:0-3"):
        with pytest.raises(UserError, match="not a range of ports"):
            expand_ports(text)
