"""What the clients send and what they make of the replies, with a real server for each protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from apt_bench.core.errors import PolicyFault
from apt_bench.envs.base import Outcome
from apt_bench.policies.guard import guard
from apt_bench.policies.preprocessing import prepared
from apt_bench.policies.registry import find_policy
from apt_bench.policies.remote.groot import chunk_of
from apt_bench.policies.remote.server import binary_gripper
from apt_bench.wire import groot, json_numpy, openpi, vla_eval
from tests.policies.remote.groot_server import Groot
from tests.policies.remote.kinds import GOLDEN, KINDS, PROMPT, STATE, episodes, observation
from tests.policies.remote.rest_servers import Oft, OpenVla
from tests.policies.remote.servers import CHUNK, Fake, OpenPi, VlaEval, is_card

CODECS = {
    "openpi": openpi, "starvla": openpi, "vlaeval": vla_eval, "groot": groot, "openvla": json_numpy, "oft": json_numpy
}  # fmt: skip
DONE = Outcome(True, True, 37, "a", "b")


def recorded(name: str) -> Any:
    data = (GOLDEN / name).read_bytes()
    codec: Any = CODECS[name.partition("/")[0]]
    return codec.decode(data.partition(b"\r\n\r\n")[2] if name.endswith(".http") else data)


def form(value: Any) -> Any:
    """Keys, dtypes and shapes; height and width of images are left out."""
    if isinstance(value, vla_eval.Message):
        return value.type, form(value.payload)
    if isinstance(value, dict):
        return {key: form(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [form(one) for one in value]
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape[:-3] + value.shape[
            -1:
        ] if value.dtype == np.uint8 else value.shape
    return type(value)


@pytest.mark.parametrize("name", KINDS)
def test_a_request_has_the_form_of_the_recorded_one(name: str) -> None:
    kind = KINDS[name]
    with kind.server() as server:
        keys = {"unnorm_key": "franka"} if name == "starvla" else {}
        keys = {"unnorm_key": "libero_spatial"} if name == "openvla" else keys
        policy = kind.policy(server, **keys)
        policy.reset(episodes()[:1])
        policy.act([observation()])
        policy.close()
    assert not server.wrong
    found, expected = form(server.requests[-1]), form(recorded(kind.request))
    if name == "vla-eval":
        expected[1].pop("controller_states")  # for servers that control absolute poses, which are refused
    assert found == expected


@pytest.mark.parametrize("name", KINDS)
def test_image_state_and_prompt_arrive_and_the_reply_becomes_actions(name: str) -> None:
    kind = KINDS[name]
    with kind.server() as server:
        policy = kind.policy(server)
        policy.reset(episodes()[:1])
        (chunk,) = guard(policy).act([observation()])
        notes = policy.notes(episodes()[0])
        policy.close()
    assert not server.wrong
    np.testing.assert_allclose(chunk, CHUNK[: kind.rows], atol=1e-6)
    assert set(chunk[:, 6]) <= {-1.0, 1.0}
    seen = server.seen[-1]
    assert seen.prompt == (PROMPT.lower() if name == "openvla" else PROMPT)
    assert is_card(seen.agentview)
    assert not is_card(seen.agentview[::-1])
    assert not is_card(seen.agentview[:, ::-1])
    assert (seen.wrist is None) == (name == "openvla")
    assert seen.wrist is None or is_card(seen.wrist, wrist=True)
    assert (seen.state is None) == (name in ("starvla", "openvla"))
    if seen.state is not None:
        np.testing.assert_array_equal(seen.state.astype(np.float32), STATE)
    assert notes["requests"] == 1
    assert 0 < notes["request_ms"] <= notes["request_ms_max"]
    assert notes.get("infer_ms") == (12.5 if name == "openpi" else None)


@pytest.mark.parametrize("name", KINDS)
def test_the_declared_interface_is_what_the_server_gets(name: str) -> None:
    kind = KINDS[name]
    with kind.server() as server:
        policy = kind.policy(server)
        policy.reset(episodes()[:1])
        policy.act([observation()])
        policy.close()
    declared, seen = policy.spec.interface, server.seen[-1]
    assert (declared.state == "none") == (seen.state is None)
    assert (declared.gripper == "unit_open") == (set(server.gripper(np.array([-1.0, 1.0]))) == {0.0, 1.0})
    assert seen.agentview.shape[:2] == (declared.image_size or (256, 256))
    image = prepared(observation().images["agentview"], declared.resize, declared.image_size)
    np.testing.assert_array_equal(seen.agentview, image)
    assert (declared.chunking == "server") == (name == "vla-eval")


@pytest.mark.parametrize("name", KINDS)
def test_each_decision_asks_again_and_notes_are_of_one_episode(name: str) -> None:
    kind = KINDS[name]
    with kind.server(answer=lambda seen: CHUNK * np.clip(seen.agentview[0, -1, 0] / 255, 0, 1)) as server:
        policy = kind.policy(server)
        first, second = episodes()
        policy.reset([first])
        policy.act([observation()])
        policy.act([observation()])
        assert policy.notes(first)["requests"] == 2
        policy.finish(first, DONE)
        policy.reset([second])
        assert policy.notes(second) == {}
        blank = {name: np.zeros_like(image) for name, image in observation().images.items()}
        (chunk,) = policy.act([observation(images=blank)])
        assert np.abs(chunk[:, :6]).max() == 0
        policy.close()


def test_the_gripper_of_servers_that_answer_0_to_1() -> None:
    given = np.array([0.0, 0.3, 0.5, 0.501, 1.0, -0.2, 1.3, np.nan, np.inf, -np.inf])
    chunk = np.zeros((len(given), 7))
    chunk[:, 6] = given
    np.testing.assert_array_equal(
        binary_gripper(chunk)[:, 6], [1, 1, 1, -1, -1, 1, -1, np.nan, np.inf, -np.inf]
    )


def test_vla_eval_is_told_each_episode() -> None:
    with VlaEval() as server:
        policy = KINDS["vla-eval"].policy(server)
        for episode in episodes():
            policy.reset([episode])
            policy.act([observation()])
            policy.act([observation()])
            policy.finish(episode, DONE)
        policy.close()
    assert [m.type for m in server.requests] == ["hello"] + [
        "episode_start", "observation", "observation", "episode_end"] * 2  # fmt: skip
    assert [m.seq for m in server.requests] == list(range(1, 10))
    hello, start, end = server.requests[0], server.requests[5], server.requests[8]
    benchmark = recorded("vlaeval/01_hello_client.bin")
    benchmark.payload.pop("benchmark")  # optional
    assert form(hello) == form(benchmark)
    assert form(start) == form(recorded("vlaeval/11_episode_start_plain.bin"))
    assert start.payload["task"] == {
        "name": episodes()[1].prompt,
        "suite": "libero_spatial_task",
        "task_id": 3,
        "episode_idx": 1,
    }
    assert form(end) == form(recorded("vlaeval/10_episode_end_success.bin"))
    assert (end.payload["metrics"], end.payload["steps"]) == ({"success": True}, 37)


def test_vla_eval_gets_what_it_asks_for() -> None:
    kind = KINDS["vla-eval"]
    with VlaEval(greeting={"observation_params": {}, "action_spec": None}) as server:
        policy = kind.policy(server)
        assert policy.spec.cameras == ("agentview",)
        policy.reset(episodes()[:1])
        policy.act([observation()])
        assert form(server.requests[-1]) == form(recorded("vlaeval/16_observation_agentview_only.bin"))
        assert policy.spec.interface.state == "none"
    with VlaEval(greeting={"action_spec": {"gripper": {"format": "binary_close_negative"}}}) as server:
        policy = kind.policy(server)
        assert policy.spec.interface.gripper == "inverted"
        policy.reset(episodes()[:1])
        (chunk,) = policy.act([observation()])
        assert chunk[0, 6] == -CHUNK[0, 6]


def test_groot_begins_with_ping_and_configuration_and_resets_per_episode() -> None:
    with Groot() as server:
        policy = KINDS["groot"].policy(server)
        for episode in episodes():
            policy.reset([episode])
            policy.act([observation()])
    names = ("01_ping", "03_modality", "05_reset", "07_action_nested")
    expected = [form(recorded(f"groot/{name}_request.bin")) for name in names]
    assert [form(request) for request in server.requests] == [*expected, *expected[2:]]


@pytest.mark.parametrize(
    ("shape", "layout", "arrays"),
    [
        ("flat", "flat", "npy"),
        ("n1.5", None, "npy"),
        ("steps", None, "npy"),
        ("nested", None, "msgpack_numpy"),
    ],
)
def test_the_forms_of_groots_messages(shape: str, layout: Any, arrays: Any) -> None:
    with Groot() as server:
        server.form, server.arrays = shape, arrays
        policy = KINDS["groot"].policy(server, layout=layout, arrays=arrays)
        assert policy.spec.horizon == 16
        policy.reset(episodes()[:1])
        (chunk,) = guard(policy).act([observation()])
        assert not server.wrong
    np.testing.assert_allclose(chunk, CHUNK, atol=1e-6)
    assert is_card(server.seen[0].agentview)
    if shape == "flat":
        expected = form(recorded("groot/13_action_flat_sim_wrapper_request.bin"))
        expected["data"]["observation"].pop("annotation.human.action.task_description")  # taken by the server
        assert form(server.requests[-1]) == expected


def test_recorded_replies_of_groot() -> None:
    nested = chunk_of(recorded("groot/08_action_nested_reply.bin"))
    assert nested.shape == (16, 7)
    assert nested[0, 0] == np.float32(-0.9)
    assert nested[1, 0] == np.float32(-0.717)
    np.testing.assert_array_equal(chunk_of(recorded("groot/14_action_flat_sim_wrapper_reply.bin")), nested)
    two = {name: np.zeros((2, 16, 1)) for name in ("x", "y", "z", "roll", "pitch", "yaw", "gripper")}
    with pytest.raises(PolicyFault, match=r"'x' of shape \(2, 16, 1\)"):
        chunk_of([two, {}])


def test_oft_replies_that_are_encoded_twice_and_a_single_row() -> None:
    with Oft() as server:
        server.twice = True
        policy = KINDS["oft"].policy(server)
        (chunk,) = policy.act([observation()])
        assert chunk.shape == (8, 7)


def test_openvla_without_a_crop() -> None:
    with OpenVla() as server:
        policy = KINDS["openvla"].policy(server, crop=False)
        policy.act([observation()])
    assert policy.spec.interface.resize == "jpeg_lanczos"
    image = prepared(observation().images["agentview"], "jpeg_lanczos", (224, 224))
    np.testing.assert_array_equal(server.seen[-1].agentview, image)


def test_an_unnormalisation_key_is_sent() -> None:
    with OpenVla() as server:
        KINDS["openvla"].policy(server, unnorm_key="libero_spatial").act([observation()])
        assert {request["unnorm_key"] for request in server.requests} == {"libero_spatial"}


@pytest.mark.parametrize("name", KINDS)
def test_the_address_is_no_part_of_the_policy(name: str) -> None:
    kind = KINDS[name]
    with kind.server() as one, kind.server() as two:
        specs = [kind.load(server.url).spec for server in (one, two)]
    assert specs[0] == specs[1]
    assert str(one.port) not in str(specs[0].to_record())


def test_what_the_server_says_of_itself_is_recorded() -> None:
    with OpenPi(greeting={"reset_pose": [0.0, -1.5], "note": "my checkpoint"}) as server:
        spec = KINDS["openpi"].load(server.url).spec
    assert spec.provenance.about == {"server": {"reset_pose": [0.0, -1.5], "note": "my checkpoint"}}
    with KINDS["starvla"].server() as server:
        spec = KINDS["starvla"].load(server.url).spec
    assert str(spec.provenance.weights).startswith("/ckpt/steps_30000.pt, metadata ")
    assert (spec.horizon, spec.execute) == (8, 8)


def test_several_servers_share_the_workers() -> None:
    fakes: list[Fake] = [OpenPi(), OpenPi(), OpenPi()]
    with fakes[0], fakes[1], fakes[2]:
        ref = find_policy("pi05", servers=[fake.url for fake in fakes])
        for worker in range(6):
            ref.for_worker(worker).load().close()
        assert [fake.clients for fake in fakes] == [2, 2, 2]


def test_notes_of_an_episode_whose_only_reply_was_unusable() -> None:
    with OpenPi() as server:
        policy = KINDS["openpi"].policy(server)
        policy.reset(episodes()[:1])
        server.fault = "shape"
        with pytest.raises(PolicyFault):
            policy.act([observation()])
        assert policy.notes(episodes()[0]) == {"requests": 0, "infer_ms": 12.5, "infer_ms_max": 12.5}
