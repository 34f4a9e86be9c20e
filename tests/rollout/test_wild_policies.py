"""Complete runs of policies that raise or answer anything: no episode is lost, and the run continues."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.policies.registry import find_policy
from apt_bench.rollout.batching import Batcher
from apt_bench.runs.records import RunStore
from tests.rollout.commands import ROOT, SUITE, Command
from tests.rollout.test_batching import observations
from tests.wild import LOST, WILD, Disconnected, HostedWildPolicy

CELL = {"cells": ("push",), "episodes": 2}


@pytest.mark.parametrize("how", WILD)
def test_whatever_a_policy_raises_ends_its_episode_and_no_other(how: str, here, tmp_path: Path) -> None:
    done = here("tests.wild:WildPolicy", policy_args=(f"how={how}",), **CELL)
    assert done.exit_code == 0
    records = RunStore.open(tmp_path / "run").episodes()
    assert len(records) == 4
    assert {r.failure for r in records if r.key.init == 1} == {"policy_fault"}
    assert "policy_fault" not in {r.failure for r in records if r.key.init == 0}
    assert all(r.error is None or len(r.error) < 3000 for r in records)


@pytest.mark.parametrize("how", LOST)
def test_a_lost_server_is_missing_data_whatever_its_client_raises(how: str, here, tmp_path: Path) -> None:
    done = here("tests.wild:WildPolicy", policy_args=(f"how={how}",), attempts=2, **CELL)
    assert done.exit_code == 1
    records = RunStore.open(tmp_path / "run").episodes()
    assert {(r.key.init, r.outcome) for r in records if r.outcome == "error"} == {(1, "error")}
    assert len([r for r in records if r.outcome == "error"]) == len(done.missing) == 2


@pytest.mark.parametrize(
    ("policy", "how", "code"),
    [("WildPolicy", "exit", 0), ("HostedWildPolicy", "unpicklable", 0), ("HostedWildPolicy", "zmq", 1)],
)
def test_the_same_in_actors(policy: str, how: str, code: int, address: str, tmp_path: Path) -> None:
    words = (
        "--ray-address",
        address,
        "--workers",
        "2",
        "--cells",
        "push",
        "--episodes",
        "2",
        "--attempts",
        "1",
    )
    Command(tmp_path / "run", *words, "--policy-arg", f"how={how}", policy=f"tests.wild:{policy}").run(code)
    records = RunStore.open(tmp_path / "run").episodes()
    assert len(records) == 4
    wanted = {"error"} if code else {"failure"}
    assert {r.outcome for r in records if r.key.init == 1} == wanted
    assert "error" not in {r.outcome for r in records if r.key.init == 0}


@pytest.mark.parametrize("how", ["exit", "interrupt", "mute", "zmq", "surrogates"])
def test_a_policy_that_cannot_be_made_is_one_message(how: str) -> None:
    with pytest.raises(
        UserError, match=r"Policy 'tests\.wild:Unmade' (cannot be made: it|cannot reach its server)"
    ) as stop:
        find_policy("tests.wild:Unmade", (f"how={how}",)).load()
    assert not isinstance(stop.value, PolicyFault)
    with pytest.raises(UserError, match="cannot be made: it raised SystemExit"):
        find_policy("tests.wild:RaisingSpec").load()


@pytest.mark.parametrize("how", ["exit", "interrupt", "cancelled"])
def test_a_fault_in_a_batch_is_not_its_neighbours(how: str) -> None:
    batcher = Batcher(HostedWildPolicy(how), clients=4, window=5)
    seen = observations(4)
    with ThreadPoolExecutor(4) as pool:
        answers = [answer for answer, _ in pool.map(batcher.act, seen)]
    assert [isinstance(a, PolicyFault) for a in answers] == [False, True, False, False]


def test_a_request_that_is_lost_is_not_its_neighbours() -> None:
    batcher = Batcher(HostedWildPolicy("zmq"), clients=4, window=5)
    seen = observations(4)
    with ThreadPoolExecutor(4) as pool:
        answers = [answer for answer, _ in pool.map(batcher.act, seen)]
    assert [isinstance(a, ServerLost) for a in answers] == [False, True, False, False]
    assert not batcher.server_lost


def test_a_server_that_is_gone_is_not_waited_for_by_each() -> None:
    policy = Disconnected(answers=0)
    batcher = Batcher(policy, clients=8, window=5)
    with ThreadPoolExecutor(8) as pool:
        answers = [answer for answer, _ in pool.map(batcher.act, observations(8))]
    assert all(isinstance(a, ServerLost) for a in answers)
    assert policy.asked == 3  # together, and two alone
    assert batcher.server_lost


def test_a_connection_that_stays_dead_is_made_anew_with_its_policy(address: str, tmp_path: Path) -> None:
    words = ("--ray-address", address, "--workers", "1", "--cells", "push", "--episodes", "2")
    Command(tmp_path / "run", *words, policy="tests.wild:Disconnected").run(0)
    records = RunStore.open(tmp_path / "run").episodes()
    assert len(records) == 4
    assert max(r.attempt for r in records) > 1


def test_ctrl_c_twice_during_a_decision_is_no_fault_of_the_policy(tmp_path: Path) -> None:
    """The second one is raised inside the policy's code."""
    words = ["--suite", SUITE, "--policy", "tests.rollout.test_wild_policies:Sleeper", "--workers", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "apt_bench", "run", *words, "--out", str(tmp_path / "run")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "asleep\n"
    os.kill(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "awake\n"
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not RunStore.open(tmp_path / "run").episodes()


class Sleeper(HostedWildPolicy):
    """Decides for a minute."""

    def __init__(self) -> None:
        super().__init__("exit")

    def act(self, observations):
        print("asleep", flush=True)
        told = inspect.getclosurevars(signal.getsignal(signal.SIGINT)).nonlocals["asked"]  # `stop_on_signals`
        told.wait(60)
        print("awake", flush=True)
        time.sleep(60)
        return super().act(observations)
