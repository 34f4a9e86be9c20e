"""A worker checks the simulator that it has imported itself."""

from __future__ import annotations

from pathlib import Path

from apt_bench.core.provenance import Package, simulator
from apt_bench.policies.registry import load_baseline
from apt_bench.rollout.workers import RolloutWorker, Settings
from apt_bench.suites import load_suite

SUITE = str(Path(__file__).parents[1] / "toy_suite.yaml")


def test_a_worker_with_another_simulator_than_the_drivers_runs_nothing() -> None:
    ref = load_baseline("zero")
    spec = load_suite(SUITE).select(episodes=1)[0]

    def worker(*seen: Package) -> RolloutWorker:
        return RolloutWorker([Settings(ref, ref.load().spec, execute=1, simulator=seen)])

    other = worker(Package("mujoco", "0.0", ()))
    for _ in range(2):  # every episode, not only the first
        result = other.run(spec)
        assert result.record is None
        assert "simulates with mujoco" in str(result.fatal)
    here = worker(*simulator({"mujoco": "3.2.3"})).run(spec)
    assert here.record is not None, here
