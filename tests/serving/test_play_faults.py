"""The worker process of `apt-bench play`, when it hangs or ends, and when nobody watches."""

from __future__ import annotations

import dataclasses
import os
import time

import pytest

from apt_bench.serving.play import Limits
from tests.chromium import LONG
from tests.serving.play_reader import SCENE, SHORT, children, kinds, started

pytestmark = pytest.mark.sim


@pytest.mark.parametrize(
    ("sentence", "limits", "message"),
    [
        ("die", {}, "ended with exit code 3. It is being started again."),
        ("hang", {"silence": 2.0}, "did not answer for 2 s. It is being started again."),
    ],
)
def test_a_lost_worker_is_replaced(sentence: str, limits: dict[str, float], message: str) -> None:
    reader = started(Limits(**{"steps": 12, "hold": 1.0, **limits}))  # type: ignore[arg-type]
    try:
        reader.ready()
        worker = reader.worker
        reader.play._limits = dataclasses.replace(
            reader.play._limits, silence=LONG
        )  # for making the first scene
        reader.run("fine")
        reader.play._limits = dataclasses.replace(reader.play._limits, **limits)
        reader.run(sentence)
        assert message in reader.head["notice"]
        reader.play._limits = SHORT
        reader.ready()
        assert kinds(reader.run("fine"))[-1] == "end0"
        assert reader.head["notice"] == ""
        assert reader.worker != worker
    finally:
        reader.play.close()
    assert children(os.getpid()) == []


def test_an_episode_that_does_not_stop_is_ended_with_its_process() -> None:
    reader = started(Limits(steps=12, hold=1.0, stop=0.5))
    try:
        reader.ready()
        reader.post("/run", **SCENE, sentences=["hang"])
        reader.until(lambda: kinds(reader.events) == ["frame0"])
        time.sleep(5)  # now the policy hangs
        reader.post("/stop")
        reader.until(lambda: "did not stop within" in reader.head["notice"])
        reader.ready()
    finally:
        reader.play.close()


def test_a_closed_page_stops_the_episode() -> None:
    reader = started(Limits(hold=1.0, gone=2.0))
    try:
        reader.ready()
        reader.post("/run", **SCENE, sentences=["slow"])
        reader.until(lambda: kinds(reader.events) == ["frame0"])
        time.sleep(8)
        reader.read()
        reader.until(lambda: not reader.head["running"])
        assert reader.events[-1]["kind"] == "end"
        assert reader.events[-1]["finished"] is False
    finally:
        reader.play.close()


def test_a_policy_that_cannot_be_loaded_ends_it() -> None:
    reader = started(policy="UnloadablePolicy")
    reader.until(lambda: reader.head.get("phase") == "failed")
    assert "No file 'weights.pt'." in reader.play.failure
    assert reader.head["text"] == reader.play.failure
    reader.play.close()
    assert children(os.getpid()) == []
