"""Ray's errors become one line that explains them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout import engine
from apt_bench.rollout.engine import RayPool
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.workers import Result, RolloutActor, Settings
from apt_bench.suites import EpisodeSpec, load_suite
from tests.rollout.commands import ROOT
from tests.toy import PushPolicy


@pytest.fixture
def spec() -> EpisodeSpec:
    return load_suite("tests/toy_suite.yaml").select(limit=1)[0]


def first(settings: Any, spec: EpisodeSpec, hang: float = 60) -> Result:
    """The result of one attempt in an actor of the session's Ray."""
    for _, result in RayPool(1, [settings], [[]], hang).stream(Schedule([spec], 1), lambda: False):
        return result
    raise AssertionError("no result")


SETTINGS = Settings(PolicyRef("push", "tests.toy:PushPolicy"), PushPolicy.spec, 3, path=str(ROOT))


def test_events_that_cannot_be_sent_cost_no_episode(address, spec):
    record = first(SETTINGS, dataclasses.replace(spec, env="tests.toy:UnpicklableEnv")).record
    assert record is not None
    assert "lock" in record.events["lock"]


def test_a_worker_that_cannot_be_made_says_why(address, spec):
    broken: Any = None
    result = first(dataclasses.replace(SETTINGS, path=broken), spec)
    assert str(result.error).startswith("worker 0 could not be started: TypeError: ")


def test_a_worker_that_does_not_start_is_given_up(address, spec, monkeypatch):
    monkeypatch.setattr(engine, "START_SECONDS", 1.0)
    import ray

    remote: Any = ray.remote
    cpus = int(ray.cluster_resources()["CPU"])
    greedy = remote(RolloutActor).options(num_cpus=cpus).remote([SETTINGS])  # takes every core
    ray.get(greedy.heartbeat.remote())
    try:
        error = first(SETTINGS, spec, hang=0.5).error
    finally:
        ray.kill(greedy)
    assert error == "worker 0 did not start within 1 s. Is a CPU free for it?"
