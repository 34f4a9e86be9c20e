"""`apt-bench serve --protocol vla-eval`, with apt-bench's own client and with frames of the genuine one."""

from __future__ import annotations

import http.client
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from websockets.sync.client import connect

from apt_bench.core.errors import ServerLost
from apt_bench.envs.base import ACTION_SCALE, Outcome, action_towards
from apt_bench.policies.remote.vla_eval import VlaEvalPolicy
from apt_bench.policies.simple import RandomPolicy, ReplayPolicy, save_actions
from apt_bench.suites import load_suite
from apt_bench.wire import vla_eval as wire
from tests.serving.helpers import (
    GOLDEN,
    STATE,
    CalibratedPolicy,
    PosePolicy,
    SeeingPolicy,
    ask,
    at_once,
    episode,
    observation,
    serving,
)

OPEN = "open the bottom drawer of the cabinet"


class Client:
    """A client that sends any message."""

    def __init__(self, address: str) -> None:
        self.socket = connect(f"ws://{address}", compression=None).__enter__()
        self.number = 0

    def send(self, kind: str, payload: dict[str, Any]) -> int:
        self.number += 1
        self.socket.send(wire.encode(wire.Message(kind, payload, self.number)))
        return self.number

    def receive(self) -> wire.Message:
        return wire.decode(self.socket.recv(20))

    def hello(self, version: int = 1) -> wire.Message:
        self.send("hello", {"harness_version": "test", "protocol_version": version})
        return self.receive()

    def start(self, **task: Any) -> None:
        self.send("episode_start", {"task": task})

    def ask(self, instruction: str = "pick it up", shade: int = 100, **changes: Any) -> wire.Message:
        given = observation(instruction, shade)
        payload = {"images": given.images, "task_description": instruction, "states": given.state} | changes
        number = self.send("observation", {k: v for k, v in payload.items() if v is not None})
        answer = self.receive()
        assert answer.seq == number
        return answer

    def action(self, *args: Any, **changes: Any) -> np.ndarray:
        answer = self.ask(*args, **changes)
        assert answer.type == "action", answer.payload
        action = answer.payload["actions"]
        assert (action.shape, action.dtype) == ((7,), np.float32)
        return action


def actions(address: str, shades: list[int], instruction: str) -> list[np.ndarray]:
    return ask(VlaEvalPolicy(address), shades, instruction)


def test_the_greeting_says_what_the_policy_needs():
    with serving(SeeingPolicy(), "vla-eval") as address:
        hello = Client(address).hello()
    assert (hello.type, hello.seq) == ("hello", 1)
    assert hello.payload["protocol_version"] == 1
    assert hello.payload["model_server"] == "seeing"
    assert hello.payload["observation_params"] == {
        "send_wrist_image": True,
        "send_state": True,
        "quat_no_antipodal": True,
    }
    genuine = wire.decode((GOLDEN / "vlaeval" / "02_hello_server_full.bin").read_bytes()).payload
    for spec in ("action_spec", "observation_spec"):
        assert hello.payload[spec] == genuine[spec]
    with serving(PosePolicy(), "vla-eval") as address:
        assert Client(address).hello().payload["observation_params"]["send_wrist_image"] is False


def test_the_server_keeps_the_chunk_and_drops_it_when_an_episode_starts():
    policy = SeeingPolicy()
    with serving(policy, "vla-eval") as address:
        client = Client(address)
        client.hello()
        client.start(name="pick it up", suite="toy")
        rows = [client.action(shade=i)[1] for i in range(4)]
        np.testing.assert_allclose(rows, [0.0, 0.1, 0.2, 0.0], atol=1e-7)  # executes 3 of 5
        assert [o.step for o in policy.seen] == [0, 3]
        client.start(name="pick it up", suite="toy")
        assert client.action()[1] == 0  # a new decision
        assert policy.seen[-1].step == 0
        client.send("episode_end", {"metrics": {"success": True}, "steps": 1})
        client.action()  # without an episode_start: a new episode
    assert [e.id for e in policy.episodes] == list(dict.fromkeys(o.episode for o in policy.seen))
    assert len(policy.episodes) == 3
    first, second, third = (outcome for _, outcome in policy.finished)
    assert (first.done, second.done, third.done) == (False, True, False)
    assert second.success
    assert second.steps == 1


def test_our_client_runs_an_episode():
    policy = SeeingPolicy()
    with serving(policy, "vla-eval") as address:
        remote = VlaEvalPolicy(address)
        assert str(remote.spec.provenance.weights).startswith("seeing, metadata ")
        spec = episode()
        remote.reset([spec])
        chunk = remote.act([observation()])[0]
        remote.finish(spec, Outcome(True, True, 1, "", ""))
        remote.close()
    np.testing.assert_array_equal(chunk[0], policy.one(policy.seen[0])[0].astype(np.float32))
    assert policy.finished[0][1].success


def test_four_clients_at_once_get_what_they_get_one_after_the_other():
    shades = [[10 * i + j for j in range(9)] for i in range(4)]
    policy = SeeingPolicy()
    with serving(policy, "vla-eval") as address:
        alone = [actions(address, s, f"task {i}") for i, s in enumerate(shades)]
        assert set(policy.batches) == {1}
        together = at_once([lambda i=i, s=s: actions(address, s, f"task {i}") for i, s in enumerate(shades)])
    assert max(policy.batches) > 1
    np.testing.assert_array_equal(np.array(together), np.array(alone))


def test_poses_become_deltas_against_the_live_state():
    policy = PosePolicy()
    with serving(policy, "vla-eval") as address:
        client = Client(address)
        client.hello()
        client.start()
        first = client.action()
        moved = STATE.copy()
        moved[0] += 0.004  # the arm lags behind the first target, 1 cm
        second = client.action(states=moved)
    np.testing.assert_allclose(first[0] * ACTION_SCALE[0], 0.01, atol=1e-6)
    np.testing.assert_allclose(second[0] * ACTION_SCALE[0], 0.016, atol=1e-6)
    target = policy.one(policy.seen[0])[1]
    np.testing.assert_array_equal(second, action_towards(target, moved).astype(np.float32))


def test_states_in_the_antipodal_form_are_made_canonical():
    policy = SeeingPolicy()
    turns = [3.1403, 3.15, 3.1390]  # robosuite's form, about x: continuous
    with serving(policy, "vla-eval") as address:
        for antipodal in (False, True):
            client = Client(address)
            client.hello()
            client.start()
            for angle in turns:
                for _ in range(3):  # one decision in three observations
                    state = STATE.astype(np.float64)
                    state[3:6] = [angle, 0, 0]
                    if antipodal:
                        state[3:6] = Rotation.from_rotvec(state[3:6]).as_rotvec()  # at most pi
                    client.action(states=state)
    robosuite, made = ([o.state for o in policy.seen[i : i + 3]] for i in (0, 3))
    np.testing.assert_allclose(made, robosuite, atol=1e-6)
    np.testing.assert_allclose([s[3] for s in robosuite], turns, atol=1e-6)


def test_the_first_state_of_the_genuine_client_is_made_robosuites():
    """From shared recordings of vla-eval on LIBERO-PRO: rx is -3.1403 first and +3.1384 in the next frame."""
    policy = SeeingPolicy()
    with serving(policy, "vla-eval") as address:
        client = Client(address)
        client.hello()
        for rx in (-3.1403, 3.1384):
            state = STATE.astype(np.float64)
            state[3:6] = [rx, -0.0008, 0.0892] if rx < 0 else [rx, 0.0008, -0.0892]
            client.start()
            client.action(states=state)
    assert [o.state[3] > 3.13 for o in policy.seen] == [True, True]
    assert policy.seen[0].state[5] < 0


GENUINE = ["01_hello_client", "03_episode_start_recording", "04_observation_png_8x8", "06_observation_2"]


def test_frames_of_the_genuine_client_are_answered():
    policy = SeeingPolicy()
    names = [*GENUINE, "08_observation_3", "10_episode_end_success", "11_episode_start_plain"]
    names += ["12_observation_png_256", "14_episode_end_failure"]
    names += ["18_observation_raw_16x16", "19_observation_jpeg_16x16"]
    with serving(policy, "vla-eval") as address, connect(f"ws://{address}", compression=None) as socket:
        answered = 0
        for name in names:
            frame = (GOLDEN / "vlaeval" / f"{name}.bin").read_bytes()
            socket.send(frame)
            if "observation" in name or "hello" in name:
                answer = wire.decode(socket.recv(20))
                assert answer.type == ("hello" if "hello" in name else "action"), answer.payload
                assert answer.seq == wire.decode(frame).seq
                answered += 1
    assert answered == 7
    (spec,) = load_suite("libero_pro").select(["goal_task"], ["0"], 4)[3:]
    assert spec.prompt == OPEN
    assert policy.episodes[0] == spec
    image = policy.seen[0].images["agentview"]
    assert image.shape == (256, 256, 3)
    assert image[:, :64, 0].mean() < image[:, -64:, 0].mean()  # red grows to the right: not turned
    assert image[:64, :, 1].mean() < image[-64:, :, 1].mean()


def test_the_clients_episode_is_the_suites():
    policy = SeeingPolicy()
    (spec,) = load_suite("libero_pro").select(["goal_task"], ["2"], 6)[5:]
    with serving(policy, "vla-eval") as address:
        one, two = Client(address), Client(address)
        for client in (one, two):
            client.hello()
            client.start(name=spec.prompt, suite="libero_goal_task", task_id=2, episode_idx=5)
            client.action(spec.prompt)
    first, second = policy.episodes
    assert first == spec
    assert policy.seen[0].noise_key == policy.seen[1].noise_key == spec.noise_key
    assert second.id != first.id  # both run at once
    assert second.id.startswith(spec.id)


def test_replay_by_suite_task_and_initial_state(tmp_path):
    specs = load_suite("libero_pro").select(["object_task"], ["1", "4"], 2)
    stored = {s.id: np.random.default_rng(i).uniform(-1, 1, (12, 7)) for i, s in enumerate(specs)}
    for i, (name, rows) in enumerate(stored.items()):
        save_actions(tmp_path / f"{i}.npz", name, rows)
    with serving(ReplayPolicy(str(tmp_path)), "vla-eval") as address:
        client = Client(address)
        client.hello()
        for spec in reversed(specs):
            task = 1 if spec.key.task == specs[0].key.task else 4
            client.start(
                name=spec.prompt, suite="libero_object_task", task_id=task, episode_idx=spec.key.init
            )
            rows = [client.action(spec.prompt) for _ in range(13)]
            np.testing.assert_array_equal(rows[:12], stored[spec.id].astype(np.float32))
            assert not rows[12].any()
            client.send("episode_end", {"metrics": {"success": True}})
        client.start(name="something else", suite="libero_object_task", task_id=1, episode_idx=0)
        answer = client.ask("something else")
        assert answer.type == "error"
        assert "no actions for episode" in answer.payload["error"]


@pytest.mark.parametrize(
    ("task", "suite", "error"),
    [
        ({"suite": "libero_goal_task", "name": OPEN}, None, None),
        ({"suite": "libero_object", "name": "any sentence"}, None, None),  # one kind of scene
        (
            {"suite": "libero_10", "name": "any sentence", "task_id": 0},
            None,
            "is not one of suite 'libero_10'",
        ),
        ({"suite": "somebody's"}, None, "not in libero_pro, libero"),
        ({}, None, "--suite libero_pro"),
        ({"name": OPEN}, "libero_pro", None),
        ({"name": "any sentence"}, "libero_pro", "different cameras"),
        ({}, "rigid_pick_place", "differs from scene to scene"),
    ],
)
def test_calibration_comes_from_the_suite_or_is_refused(task, suite, error):
    instruction = task.get("name", "pick it up")
    with serving(CalibratedPolicy(), "vla-eval", suite) as address:
        client = Client(address)
        client.hello()
        client.start(**task)
        answer = client.ask(instruction)
        if error is None:
            assert answer.type == "action"
            x = 0.8965773716836134 if task.get("suite") == "libero_object" else 0.6586131746834771
            np.testing.assert_allclose(answer.payload["actions"][0], x / 2, atol=1e-6)
        else:
            assert answer.type == "error"
            assert "calibration" in answer.payload["error"]
            assert error in answer.payload["error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "the observation has none"),
        ({"images": {"agentview": np.zeros((8, 8, 3), np.uint8)}}, "needs the image 'wrist'"),
        ({"images": {"agentview": np.zeros((8, 9, 3), np.uint8)}}, "9x8"),
        ({"states": None}, "send_state"),
        ({"states": np.zeros(3)}, "8 finite numbers"),
        ({"task_description": None}, "task_description"),
    ],
)
def test_an_error_leaves_the_connection_open(changes, message):
    with serving(SeeingPolicy(), "vla-eval") as address:
        client = Client(address)
        client.hello()
        client.start()
        answer = client.ask(**changes)
        assert answer.type == "error"
        assert message in answer.payload["error"]
        client.action()


def test_an_error_of_the_policy_leaves_the_connection_open():
    with serving(SeeingPolicy(), "vla-eval") as address:
        client = Client(address)
        client.hello()
        assert (
            "Policy 'seeing' raised RuntimeError: the toy policy is confused"
            in client.ask("raise").payload["error"]
        )
        assert "another observation" in client.ask("refuse").payload["error"]
        client.action()
        remote = VlaEvalPolicy(address)
        remote.reset([episode("raise")])
        with pytest.raises(ServerLost, match="the toy policy is confused"):
            remote.act([observation("raise")])


def test_another_version_and_unknown_types_are_errors():
    with serving(SeeingPolicy(), "vla-eval") as address:
        client = Client(address)
        assert "version 2" in client.hello(2).payload["error"]
        number = client.send("dance", {})
        answer = client.receive()
        assert (answer.type, answer.seq) == ("error", number)
        client.socket.send(b"\xc1 garbage")
        assert client.receive().type == "error"
        client.socket.send("text")
        assert client.receive().type == "error"
        assert client.hello().type == "hello"


def test_health():
    with serving(RandomPolicy(), "vla-eval") as address:
        answer = http.client.HTTPConnection(address, timeout=10)
        answer.request("GET", "/health")
        found = answer.getresponse()
        assert (found.status, found.read()) == (200, b'{"status": "ok"}\n')
        assert found.headers["Content-Type"] == "application/json"
