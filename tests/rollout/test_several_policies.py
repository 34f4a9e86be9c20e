"""Several policies in one command share the workers; each has the run directory that a command of its own gives it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apt_bench.policies.base import Resources
from apt_bench.policies.simple import ZeroPolicy
from apt_bench.rollout.schedule import Schedule
from apt_bench.runs.records import RunStore
from apt_bench.suites import load_suite
from tests.rollout.commands import SUITE, Command, results
from tests.toy import GpuPushPolicy, HostedPushPolicy

PUSH, HOSTED, GPU = "tests.toy:PushPolicy", "tests.toy:HostedPushPolicy", "tests.toy:GpuPushPolicy"
RUN = ["run", "--suite", SUITE, "--workers", "0", "--episodes", "2"]
HERE = "tests.rollout.test_several_policies"
IDLE, GREEDY, OTHER_GPU = (f"{HERE}:{name}" for name in ("Idle", "Greedy", "OtherGpu"))
Cli = Callable[..., str]


def folder(out: Path, policy: str) -> Path:
    return out / policy.replace(":", "_")


def both(out: Path, *words: object, policies: tuple[str, ...] = (PUSH, "zero")) -> list[object]:
    return [*RUN, *(word for policy in policies for word in ("--policy", policy)), "--out", out, *words]


def alone(tmp_path: Path, policy: str) -> dict[str, tuple[object, ...]]:
    command = Command(tmp_path / f"alone-{policy}", "--workers", "0", "--episodes", "2", policy=policy)
    command.run()
    return results(command.out)


def test_each_run_is_the_one_of_a_command_of_its_own(cli: Cli, tmp_path: Path) -> None:
    shown = cli(*both(tmp_path / "runs"), code=0)
    for policy in (PUSH, "zero"):
        out = folder(tmp_path / "runs", policy)
        assert results(out) == alone(tmp_path, policy)
        assert f"\n{policy}: {out}\n" in shown
        requested = RunStore(out).run()["requested"]
        assert {cell: sum(tasks.values()) for cell, tasks in requested.items()} == {"push": 4, "slide": 4}
    assert shown.count("Time: 16 episodes in") == 1
    assert (
        f"Next: apt-bench report {folder(tmp_path / 'runs', PUSH)} {folder(tmp_path / 'runs', 'zero')}"
        in shown
    )


def test_a_worker_finishes_a_scene_for_all_policies() -> None:
    specs = load_suite(SUITE).select(["push"], episodes=3)
    schedule = Schedule([], attempts=2)
    for run in range(2):
        schedule.add(specs, run)
    jobs = [schedule.next(0) for _ in range(12)]
    assert schedule.next(0) is None
    assert [job.spec.group for job in jobs if job] == ["left"] * 6 + ["right"] * 6
    assert sorted((job.run, job.spec.key.id) for job in jobs if job) == sorted(
        (run, spec.key.id) for run in range(2) for spec in specs
    )
    first = jobs[0]
    assert first
    assert schedule.retry(first)
    again = schedule.next(0)
    assert again == first._replace(attempt=2)
    assert not schedule.retry(again)
    other = next(j for j in jobs if j and j.spec == first.spec and j.run != first.run)
    assert schedule.retry(other), "the attempts of one run are not those of the other"


def test_workers_with_policies_of_their_own_and_with_actors(address: str, tmp_path: Path) -> None:
    policies = (PUSH, HOSTED, GPU, OTHER_GPU)  # Ray has two GPUs
    more = [word for policy in policies[1:] for word in ("--policy", policy)]
    command = Command(tmp_path / "runs", *more, "--episodes", "2", "--ray-address", address, "--workers", "2")
    command.run()
    for policy in policies:
        assert results(folder(tmp_path / "runs", policy)) == alone(tmp_path, policy)


def test_policies_that_need_the_same_gpus(address: str, tmp_path: Path) -> None:
    more = ["--policy", GREEDY, "--ray-address", address, "--workers", "2"]
    err = Command(tmp_path / "runs", *more, policy=GPU).run(expect=2)
    assert "needs 2 GPU(s) of one machine; Ray sees 2 in all. Give each of the 2 policies a command" in err


def test_a_rerun_runs_what_is_missing(cli: Cli, tmp_path: Path) -> None:
    cli(*both(tmp_path / "runs", "--tasks", "left", policies=(PUSH, HOSTED)), code=0)
    cli(*both(tmp_path / "runs", "--tasks", "left"), code=0)
    before = {p: results(folder(tmp_path / "runs", p)) for p in (PUSH, "zero")}
    found = json.loads(cli(*both(tmp_path / "runs", "--json"), code=0))
    assert [(run["policy"], run["new_episodes"]) for run in found["runs"]] == [(PUSH, 4), ("zero", 4)]
    for policy, earlier in before.items():
        now = results(folder(tmp_path / "runs", policy))
        assert len(now) == 8
        assert earlier.items() <= now.items()
    again = json.loads(cli(*both(tmp_path / "runs", "--json"), code=0))
    assert [run["new_episodes"] for run in again["runs"]] == [0, 0]
    one = json.loads(cli(*both(tmp_path / "runs", "--json", policies=(PUSH, IDLE)), code=0))
    assert [run["new_episodes"] for run in one["runs"]] == [0, 8]


def test_a_dry_run_shows_every_plan(cli: Cli, tmp_path: Path) -> None:
    shown = cli(*both(tmp_path / "runs", "--dry-run"), code=0)
    for policy in (PUSH, "zero"):
        assert f"8 episodes to run, into {folder(tmp_path / 'runs', policy)}" in shown
    found = json.loads(cli(*both(tmp_path / "runs", "--dry-run", "--json"), code=0))
    assert [run["policy"] for run in found["runs"]] == [PUSH, "zero"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--policy-arg", "seed=1"], "--policy-arg is about one policy, and there are 2: "),
     (["--checkpoint", "x"], "--checkpoint is about one policy"),
     (["--server", "localhost:1"], "--server is about one policy"),
     (["--selection-rule", "the last one"], "--selection-rule is about one policy"),
     (["--stop-when", "decided", "--against", "x"], "--against is about one policy"),
     (["--track", "wandb"], "--track follows one run")],
)  # fmt: skip
def test_options_about_one_policy_are_refused(cli: Cli, tmp_path: Path, words: list[str], says: str) -> None:
    err = cli(*both(tmp_path / "runs", *words))
    assert says in err
    assert "a command of its own" in err
    assert not (tmp_path / "runs").exists()


def test_policies_with_one_run_directory(cli: Cli, tmp_path: Path) -> None:
    one, other = tmp_path / "a.yaml", tmp_path / "b" / "a.yaml"
    other.parent.mkdir()
    for path in (one, other):
        path.write_text("about: a test\npolicy: tests.toy:PushPolicy\n")
    words = [*RUN, "--policy", one, "--policy", other]
    assert "have the same run directory. Give each a command of its own" in cli(*words)


def test_a_policy_that_cannot_be_made_stops_the_command_before_it_runs(cli: Cli, tmp_path: Path) -> None:
    err = cli(*both(tmp_path / "runs", policies=(PUSH, "no_such")))
    assert "no_such" in err
    assert not (tmp_path / "runs").exists()


class Idle(ZeroPolicy):
    """As `zero`, under another name."""


class OtherGpu(GpuPushPolicy):
    """Needs one of the GPUs, too."""


class Greedy(HostedPushPolicy):
    """Needs both GPUs."""

    spec = dataclasses.replace(HostedPushPolicy.spec, name="greedy", resources=Resources(num_gpus=2))
