"""The server and the worker process of `apt-bench play`."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apt_bench.core.config import load_object
from apt_bench.models.checkpoint import SHIPPED
from apt_bench.policies.registry import find_policy
from apt_bench.policies.shipped import NETWORKS
from apt_bench.rollout.episode import LocalClient, run_episode
from apt_bench.serving.play import Limits, Play
from apt_bench.serving.play_worker import WatchedEnv, vocabulary
from apt_bench.suites import EpisodeSpec, load_suite
from apt_bench.suites.custom_instructions import LENGTH
from tests.serving.play_reader import SCENE, SHORT, Reader, children, kinds, started


@pytest.fixture(scope="module")
def shared() -> Iterator[Reader]:
    found = started()
    yield found
    found.play.close()
    assert children(os.getpid()) == []


@pytest.fixture
def reader(shared: Reader) -> Reader:
    shared.ready()
    return shared


pytestmark = pytest.mark.sim


def test_an_episode_is_shown_from_the_first_image_to_the_verdict(reader: Reader) -> None:
    events = reader.run("Move the sky to the plate.")
    assert kinds(events) == ["frame0"] * 4 + ["end0"]
    assert [event["step"] for event in events[:-1]] == [0, 4, 8, 12]
    for event in events[:-1]:
        assert event["sentence"] == "Move the sky to the plate."
        assert event["budget"] == 12
        for address in event["images"].values():
            assert image(address).shape == (256, 256, 3)
    assert np.abs(image(events[0]["images"]["wrist"]) - image(events[3]["images"]["wrist"])).mean() > 1
    end = events[-1]
    assert (end["finished"], end["decisions"], end["did"], end["goal"]) == (True, 3, None, False)


def image(address: str) -> np.ndarray:
    data = base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)), dtype=np.int16)


def test_two_sentences_begin_in_the_same_state(reader: Reader) -> None:
    events = reader.run("one", "another")
    assert kinds(events) == ["frame0", "frame1"] * 3 + ["frame0", "end0", "frame1", "end1"]
    assert events[0]["images"] == events[1]["images"]
    assert [events[0]["sentence"], events[1]["sentence"]] == ["one", "another"]


def test_an_episode_that_ends_first_leaves_the_other_one(reader: Reader) -> None:
    events = reader.run("raise", "another")
    assert kinds(events) == ["frame0", "frame1", "end0", "frame1", "frame1", "frame1", "end1"]
    assert (events[2]["fault"] is None, events[-1]["fault"]) == (False, None)
    assert events[-1]["steps"] == 12


@pytest.mark.parametrize(
    ("policy", "scene", "steps"),
    [
        ("tests.serving.play_policy:CountingPolicy", SCENE, 24),
        ("oracle", SCENE, 240),
        ("apt", SCENE, 32),
        pytest.param(
            "apt",
            {"suite": "libero", "cell": "object", "task": "pick_up_the_milk_and_place_it_in_the_basket"},
            32,
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_two_sentences_end_as_each_of_them_alone(policy: str, scene: dict[str, Any], steps: int) -> None:
    def ran(*sentences: str) -> list[list[dict[str, Any]]]:
        events = reader.run(*sentences, **scene)
        return [[e | {"side": 0, "seconds": 0} for e in events if e["side"] == n] for n in (0, 1)]

    play = Play(find_policy(policy), Limits(steps=steps, hold=1.0))
    play.start()
    reader = Reader(play)
    try:
        reader.ready()
        alone = [ran("Move the can to the plate.")[0], ran("pick up the milk")[0]]
        assert ran("Move the can to the plate.", "pick up the milk") == alone
        assert alone[0][-2]["images"] != alone[0][0]["images"]
    finally:
        play.close()


def test_without_a_sentence_the_scene_is_shown(reader: Reader) -> None:
    before = reader.head["job"]
    answer = reader.post("/run", **SCENE, sentences=[])
    assert answer["sentence"] == "Move the rubber duck to the plate."
    reader.until(lambda: reader.head["job"] > before and not reader.head["running"])
    assert kinds(reader.events) == ["frame0"]
    request = reader.head["request"]  # from which another page takes its choices
    assert request == {**SCENE, "sentences": [answer["sentence"]], "number": answer["number"]}
    assert {"duck", "plate", "bowl"} <= set(reader.events[0]["objects"])
    assert reader.events[0]["goal"] == "duck on plate"
    assert reader.events[0]["other"] != answer["sentence"]


def test_the_sentence_of_the_task_is_judged_by_its_goal(reader: Reader) -> None:
    assert reader.run("Move the rubber duck to the plate.")[-1]["verdict"] == "No."


def test_only_a_mini_vlm_has_a_vocabulary_of_words() -> None:
    (tabletop,) = load_suite("rigid_pick_place").select(["so"], ["to_bowl"], episodes=1)
    (libero, *_) = load_suite("libero_pro").select(["object_task"], episodes=1)

    def known(spec: EpisodeSpec, name: str, weights: str | None = None) -> list[bool] | None:
        words = vocabulary(find_policy(name, file=weights), spec)
        return None if words is None else [word in words for word in ("plate", "basket", "sky")]

    assert known(tabletop, "apt") == known(libero, "apt", "mini") == [True, False, False]
    assert known(libero, "apt") == known(libero, "apt", str(SHIPPED["libero_object"])) == [True, True, False]
    assert known(tabletop, "random") is known(tabletop, "apt", "owner/name") is None


def test_a_fault_of_the_policy_is_shown_as_text(reader: Reader) -> None:
    end = reader.run("raise")[-1]
    assert "the toy <b>policy</b> is confused" in end["fault"]
    assert reader.run("fine")[-1]["fault"] is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sentences": ["x" * (LENGTH + 1)]}, f"has {LENGTH + 1} characters"),
        ({"sentences": ["a\nb"]}, "a line break or a control character"),
        ({"sentences": ["a\u202eb"]}, "a line break or a control character"),
        ({"sentences": ["a", "b", "c"]}, "two sentences"), ({"sentences": [3]}, "sentences"),
        ({"suite": "none"}, "a suite 'none'"), ({"suite": "/etc/passwd.yaml"}, "a suite '/etc"),
        ({"cell": "none"}, "has no cell"), ({"task": "none"}, "has no episode"), ({"init": 10**9}, "has no episode"),
        ({"init": -1}, "init"),
        ({"init": "1"}, "init"), ({"more": 1}, "more"),
    ],
)  # fmt: skip
def test_bad_requests_are_answered_with_a_message(
    reader: Reader, changed: dict[str, Any], message: str
) -> None:
    before = reader.head["job"]
    assert message in reader.post("/run", **{**SCENE, "sentences": ["x"], **changed})["error"]
    reader.read()
    assert (reader.head["job"], reader.head["running"]) == (before, False)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 60_000])
def test_a_body_that_is_no_request_is_answered(reader: Reader, body: bytes) -> None:
    answer = reader.play.post("/run", body)
    assert answer
    assert json.loads(answer.text)["error"]


def test_stop_ends_an_episode(reader: Reader) -> None:
    before = reader.head["job"]
    reader.play._limits = Limits(hold=1.0)
    reader.post("/run", **SCENE, sentences=["slow", "slow"])
    reader.until(lambda: reader.head["job"] > before and "frame1" in kinds(reader.events))
    worker = reader.worker
    reader.post("/stop")
    reader.until(lambda: not reader.head["running"])
    reader.play._limits = SHORT
    assert set(kinds(reader.events)) == {"frame0", "frame1", "end0", "end1"}
    assert [event["finished"] for event in reader.events[-2:]] == [False, False]
    assert reader.worker == worker


def test_the_last_request_counts(reader: Reader) -> None:
    before = reader.head["job"]
    for init in range(4):
        reader.post("/run", **{**SCENE, "init": init}, sentences=["slow"])
    reader.post("/run", **SCENE, sentences=["last"])
    reader.until(
        lambda: (
            reader.head["job"] > before
            and not reader.head["running"]
            and kinds(reader.events)[-1:] == ["end0"]
        )
    )
    assert reader.events[0]["sentence"] == "last"


def test_many_instructions_leak_nothing(reader: Reader) -> None:
    def used() -> tuple[float, int, int, int]:
        status = Path(f"/proc/{worker}/status").read_text()
        megabytes = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        handles = [len(os.listdir(f"/proc/{pid}/fd")) for pid in (worker, "self")]
        return megabytes, *handles, len(os.listdir("/proc/self/task"))

    worker = reader.worker
    for n in range(5):
        reader.run(f"first {n}", init=n)
    before = used()
    for n in range(15):
        reader.run(f"more {n}", init=n)
    after = used()
    assert reader.worker == worker
    assert after[1:] == before[1:]
    assert after[0] - before[0] < 40


def test_watching_does_not_change_an_episode() -> None:
    """The scripted expert, and a network's poses: the same states, events and decisions as in a run."""
    frames: list[dict[str, Any]] = []
    for name, steps in (("oracle", 240), ("apt", 24)):
        policy = find_policy(name).load()
        (spec,) = load_suite("rigid_pick_place").select(["so"], ["to_bowl"], episodes=1)
        spec = dataclasses.replace(spec, max_steps=steps)
        env = load_object(spec.env)()
        plain = run_episode(env, LocalClient(policy), spec, policy.spec, policy.spec.execute)
        watched = WatchedEnv(env, lambda **frame: frames.append(frame))
        seen = run_episode(watched, LocalClient(policy), spec, policy.spec, policy.spec.execute)
        same = [dataclasses.replace(r.record, seconds={}) for r in (plain, seen)]
        assert same[0] == same[1]
        assert np.array_equal(plain.actions, seen.actions)
        result = watched.result(spec.prompt, spec.prompt)
        assert result["decisions"] == seen.record.decisions
        assert result["goal"] == (seen.record.outcome == "success")
        assert result["first"] == "" or seen.record.events["touched"]
        env.close()
    assert any("put down" in words for _, words in story_of(spec))


def story_of(spec: EpisodeSpec) -> list[tuple[int, str]]:
    """What the scripted expert does."""
    policy = find_policy("oracle").load()
    spec = dataclasses.replace(spec, max_steps=240)
    watched = WatchedEnv(load_object(spec.env)(), lambda **frame: None)
    run_episode(watched, LocalClient(policy), spec, policy.spec, policy.spec.execute)
    result = watched.result(spec.prompt, spec.prompt)
    watched.close()
    assert (result["did"], result["verdict"]) == (True, "Yes.")
    return result["story"]


def test_the_shipped_policy_has_scenes_of_its_networks_only() -> None:
    shipped = Play(find_policy("apt"))._catalogue
    every = Play(find_policy("random"))._catalogue
    assert shipped[0]["name"] == "rigid_pick_place"
    assert shipped[0]["cells"][1]["label"] == "UO: unseen items"
    names = {f"{suite['name']}:{cell['name']}" for suite in shipped for cell in suite["cells"]}
    assert {"clutter_pick_place:so", "libero:object", "libero_pro:object_pos"} <= names
    assert ("libero:spatial" in names) == ("libero_spatial" in NETWORKS)
    assert len(every) > len(shipped) or "libero_goal" in NETWORKS
