"""Runs without faults: the same results everywhere, extension, videos and replay."""

from __future__ import annotations

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.core.files import exclusive
from apt_bench.rollout.cluster import auto_workers
from apt_bench.rollout.runner import RunOptions, dry_plan
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.video import film
from apt_bench.runs.protocol import differing_settings
from apt_bench.runs.records import RunStore
from apt_bench.suites import load_suite
from tests.rollout.commands import SUITE, Command, records, results
from tests.toy import ToyEnv


@pytest.mark.parametrize(
    "policy", ["tests.toy:PushPolicy", "tests.toy:GpuPushPolicy"]
)  # in workers, in 2 actors
def test_workers_and_order_change_nothing(policy, here, address, tmp_path):
    one = here(policy, tmp_path / "one")
    assert one.exit_code == 0
    outcomes = {r.outcome for r in one.records}
    assert outcomes == {"success", "timeout"}  # a test of equality needs results that differ
    words = ("--ray-address", address, "--cells", "slide,push", "--workers")
    commands = [Command(tmp_path / f"ray{n}", *words, n, policy=policy) for n in ("1", "2")]
    for command, process in [(c, c.start()) for c in commands]:  # in parallel: they share nothing
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        assert results(command.out) == results(tmp_path / "one")


def test_a_run_can_be_extended_but_not_changed(here, tmp_path):
    first = here(cells=("push",), episodes=1)
    assert (len(first.records), first.exit_code) == (2, 0)
    store = RunStore.open(tmp_path / "run")
    wall = store.run()["wall_seconds"]
    second = here(cells=("slide", "push"), tasks=("left",), episodes=2)
    assert (len(second.records), len(records(tmp_path / "run"))) == (4, 5)
    run = store.run()
    assert run["requested"]["push"] == {"push_the_puck_left": 2, "push_the_puck_right": 1}
    assert run["requested"]["slide"] == {"push_the_puck_left": 2}
    assert run["wall_seconds"] >= wall
    with pytest.raises(UserError, match=r"another protocol \(execute: 3 there, 1 now\)"):
        here(execute_horizon=1)
    with pytest.raises(UserError, match=r"another policy \(args.noise: None there, 0.1 now\)"):
        here(policy_args=("noise=0.1",))
    with (
        exclusive(tmp_path / "run", "apt-bench run"),
        pytest.raises(UserError, match="Another apt-bench run"),
    ):
        here()


def test_probes_run_beside_their_twins(here, tmp_path):
    done = here("tests.toy:HostedPushPolicy", cells=("push",), episodes=2, probes=("null",))
    assert sorted(r.key.prompt for r in done.records) == ["default"] * 4 + ["null"] * 4 + ["repeat"] * 4
    twins = {(r.key.task, r.key.init, r.key.prompt): r for r in done.records}
    for (task, init, prompt), record in twins.items():
        own = twins[task, init, "default"]
        assert record.start_hash == own.start_hash
        assert (record.end_hash == own.end_hash) == (
            prompt == "default"
        )  # reads its sentence, seeds by episode
    assert RunStore.open(tmp_path / "run").run()["requested"]["push"]["push_the_puck_left"] == 2


def test_unavailable_tasks_are_told(here, tmp_path):
    here(cells=("push",), episodes=1)
    with pytest.raises(UserError, match="None of these tasks is available"):
        here(cells=("absent",))


def test_videos_and_replay(here, tmp_path):
    told = here(episodes=2, video="failures", save_actions=True)
    filmed = {r.video for r in told.records if r.video}
    assert filmed
    assert all((r.video is None) == (r.outcome == "success") for r in told.records)
    assert {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run/videos").rglob("*.*")} == filmed
    record = next(r for r in told.records if r.video)
    video = imageio.mimread(tmp_path / "run" / record.video)
    assert len(video) == record.steps // 2 + 1
    env = ToyEnv()
    env.reset(next(s for s in load_suite(SUITE).select() if s.key == record.key))
    assert np.abs(video[0].astype(int) - env.frame()).mean() < 5  # a lossy film of this very episode

    again = here("replay", tmp_path / "again", file=str(tmp_path / "run/actions"), episodes=2)
    assert {r.key: r.end_hash for r in again.records} == {r.key: r.end_hash for r in told.records}


def test_a_film_that_shows_something_else_is_told(here):
    record = here(episodes=1, limit=1).records[0]
    spec = load_suite(SUITE).select(episodes=1, limit=1)[0]
    other, video = film(ToyEnv(), spec, record, np.ones((5, 7)), 20, lambda phase: None)
    assert video is None
    assert "replay ended in another state" in other.error


def test_later_faults_of_a_policy_are_its_failures(here):
    done = here("tests.toy:BadPolicy", policy_args=("how=raise", "init=2"), cells=("push",))
    faulty = [r for r in done.records if r.failure == "policy_fault"]
    assert {r.key.init for r in faulty} == {2}
    assert {r.outcome for r in faulty} == {"failure"}
    assert "raised ValueError: the toy policy is confused" in faulty[0].error
    assert done.exit_code == 0


def test_schedule_keeps_a_worker_on_its_scene():
    specs = load_suite(SUITE).select(episodes=3)  # two cells in the same two scenes, 6 episodes each
    schedule = Schedule(specs, attempts=2)
    jobs = [[schedule.next(w).spec for _ in range(5)] for w in (0, 1)]
    assert [{s.group for s in mine} for mine in jobs] == [{"left"}, {"right"}]
    schedule.next(0)
    stolen = schedule.next(0)  # its own scene is done: it takes from the end of the other
    assert stolen.spec.group == "right"
    assert schedule.next(1) is None
    assert schedule.retry(stolen)
    assert schedule.next(1) == stolen._replace(attempt=2)
    assert not schedule.retry(stolen)


def test_auto_workers():
    assert [auto_workers(c, gb) for c, gb in ((2, 24), (16, 24), (8, 3), (64, 512))] == [2, 4, 1, 64]


def test_the_committed_reference_run_has_todays_protocol():
    reference = Path(__file__).parents[2] / "results/reference/oracle-rigid_pick_place"
    options = RunOptions.of(suite="rigid_pick_place", policy="oracle", episodes=10, out=reference)
    plan = dry_plan(options)
    assert differing_settings(plan.protocol, RunStore(reference).protocol()) == []
    assert not plan.todo
