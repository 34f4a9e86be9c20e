"""After the death of any process, the run has exactly the requested episodes, none twice, with the same results."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from apt_bench.rollout.runner import RunResult
from tests.rollout.commands import Command, Results, actors, records, results, until
from tests.toy import order

HOSTED = "tests.toy:HostedPushPolicy"
LEFT = "toy/push/push_the_puck_left/init{}/seed7/default"


@pytest.fixture
def slow(faults: Path) -> Iterator[None]:
    (faults / "slow-").touch()
    yield
    (faults / "slow-").unlink()


@pytest.fixture
def reference(here: Callable[..., RunResult], tmp_path: Path) -> Callable[[str], Results]:
    """An undisturbed run in one process."""

    def go(policy: str) -> Results:
        out = tmp_path / "reference"
        assert here(policy, out).exit_code == 0
        return results(out)

    return go


@pytest.mark.parametrize(
    ("policy", "actor"), [("tests.toy:PushPolicy", "RolloutActor"), (HOSTED, "PolicyHost")]
)
def test_kill_an_actor(policy, actor, address, slow, reference, tmp_path):
    command = Command(tmp_path / "run", "--ray-address", address, "--workers", "2", policy=policy)
    process = command.start()
    command.wait_for(2, process)
    os.kill(actors(actor)[0].pid, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "Retrying " in out
    assert results(command.out) == reference(policy)


def test_kill_the_driver_then_the_same_command(reference, tmp_path, faults, monkeypatch):
    monkeypatch.setenv("TOY_FAULTS", str(faults))
    (faults / "slow-").touch()
    command = Command(tmp_path / "run", "--workers", "2")  # a Ray of its own
    process = command.start()
    command.wait_for(2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    (faults / "slow-").unlink()
    done_before = results(command.out)
    assert 0 < len(done_before) < 16
    Command(tmp_path / "run", "--workers", "0").run()
    whole = results(command.out)
    assert whole == reference("tests.toy:PushPolicy")
    assert done_before.items() <= whole.items()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), seconds=30)


def test_hung_and_broken_workers(address, faults, reference, tmp_path):
    for what, init in (("hang", 0), ("crash", 1), ("die", 2), ("exit", 3)):
        order(faults, what, LEFT.format(init))
    command = Command(tmp_path / "run", "--ray-address", address, "--workers", "2", "--hang-timeout", "10")
    command.run()
    assert results(command.out) == reference("tests.toy:PushPolicy")
    attempts = {r.key.id: r.attempt for r in records(command.out)}
    assert {attempts.pop(LEFT.format(i)) for i in range(4)} == {2}
    assert set(attempts.values()) == {1}


def test_hung_policy_and_lost_server(address, faults, reference, tmp_path):
    order(faults, "policy-hang", LEFT.format(0))
    order(faults, "policy-gone", LEFT.format(3))
    Command(
        tmp_path / "run",
        *("--ray-address", address, "--workers", "2", "--hang-timeout", "10"),
        policy=HOSTED,
    ).run()
    assert results(tmp_path / "run") == reference(HOSTED)


def test_a_worker_that_has_delivered_has_started(address, slow, reference, tmp_path):
    """A worker that the system stops is killed after --hang-timeout, not after the time limit of a start."""
    command = Command(tmp_path / "run", "--ray-address", address, "--workers", "2", "--hang-timeout", "20")
    process = command.start()
    command.wait_for(3, process)
    actors("RolloutActor")[0].send_signal(signal.SIGSTOP)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    assert "gave no heartbeat and was killed" in out
    assert results(command.out) == reference("tests.toy:PushPolicy")


def test_what_keeps_failing_is_missing_not_failed(here, tmp_path):
    result = here(cells=("broken", "push"), tasks=("left",), episodes=2)
    assert (result.exit_code, len(result.missing), result.stopped) == (1, 2, "")
    lost = [r for r in records(tmp_path / "run") if r.key.cell == "broken"]
    assert [(r.outcome, r.attempt, r.failure) for r in lost] == [("error", 3, None)] * 2
    assert "RuntimeError: the toy broke (toy.py:" in lost[0].error
    result = here(cells=("broken",), episodes=4)
    assert (result.stopped, len(result.missing)) == ("errors", 8)
    assert "5 episodes in a row" in result.message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """A folder with space for a few episodes, a limit for a process, and a function that makes the folder larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=100", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        yield (
            folder,
            lambda: None,
            lambda: subprocess.run(["mount", "-o", "remount,size=9m", folder], check=True),
        )
        subprocess.run(["umount", str(folder)], check=True)
    else:  # not root: files that may not grow
        yield folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)), lambda: None


def test_full_disk(small_disk, reference):
    folder, limit, enlarge = small_disk
    command = Command(folder / "run", "--workers", "0")
    process = subprocess.run(command._words, capture_output=True, text=True, preexec_fn=limit)
    assert process.returncode == 1, process.stderr
    assert "episodes are recorded" in process.stderr
    assert "Traceback" not in process.stderr
    before = results(command.out)
    assert 0 < len(before) < 16
    assert (command.out / "episodes.jsonl").read_bytes().endswith(b"}\n")
    enlarge()
    command.run()
    assert results(command.out) == reference("tests.toy:PushPolicy")


@pytest.mark.parametrize(
    ("workers", "number"), [("2", signal.SIGINT), ("0", signal.SIGTERM)], ids=["ctrl-c", "sigterm"]
)
def test_stop_and_go_on(workers, number, faults, reference, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_FAULTS", str(faults))
    (faults / "slow-").touch()
    command = Command(tmp_path / "run", "--workers", workers)
    process = command.start()
    command.wait_for(2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)  # a terminal signals the whole group
    _, err = process.communicate(timeout=300)
    (faults / "slow-").unlink()
    assert process.returncode == 130, err
    assert err.strip() == "apt-bench: interrupted. Rerun the same command to resume."
    assert 0 < len(results(command.out)) < 16
    assert not any(p.is_running() for p in family)
    Command(tmp_path / "run", "--workers", "0").run()
    assert results(command.out) == reference("tests.toy:PushPolicy")


def test_a_bad_policy_actor_ends_the_run(address, tmp_path):
    words = ("--ray-address", address, "--workers", "2", "--policy-arg", "how=nan")
    err = Command(tmp_path / "run", *words, policy="tests.toy:HostedBadPolicy").run(expect=2)
    assert "Policy 'hosted_bad' returned a chunk with NaN" in err
    assert len(err.strip().splitlines()) == 1
