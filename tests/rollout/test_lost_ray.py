"""Ray or its processes die: a plain message, no episode lost, no process or file left."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from apt_bench.core.errors import RayLost
from apt_bench.core.temporary_folders import lock
from apt_bench.rollout import cluster, ray_folder
from apt_bench.rollout.ray_folder import PREFIX, sweep
from tests.rollout.commands import Command, Results, results, until


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Episodes last until this file is removed."""
    faults = tmp_path / "faults"
    faults.mkdir()
    monkeypatch.setenv("TOY_FAULTS", str(faults))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # too long for Ray's sockets, as pytest's folders are
    (faults / "slow-").touch()
    return faults / "slow-"


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def named(family: list[psutil.Process], word: str) -> psutil.Process:
    return next(p for p in family if word in " ".join(p.cmdline()))


def folder_of(family: list[psutil.Process]) -> Path:
    return Path(named(family, "gcs_server").environ()["RAY_AUTH_TOKEN_PATH"]).parent


@pytest.mark.parametrize(
    ("victim", "policy", "words"),
    [
        ("gcs_server", "tests.toy:PushPolicy", "Ray's control process (gcs_server) died"),
        ("raylet/raylet", "tests.toy:HostedPushPolicy", "Ray's node process (raylet) died"),
    ],
)
def test_the_death_of_ray_is_told_and_the_same_command_goes_on(victim, policy, words, slow, here, tmp_path):
    command = Command(tmp_path / "run", "--workers", "2", policy=policy)
    process = command.start()
    command.wait_for(2, process)
    family = children(process)
    folder = folder_of(family)
    named(family, victim).kill()
    killed = time.monotonic()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    assert time.monotonic() - killed < 45  # Ray itself reports it after 60 s
    done = results(command.out)
    assert 0 < len(done) < 16
    assert err.startswith(f"apt-bench: stopped. {words}: it was killed, or the machine ran out of memory. ")
    assert f"{len(done)} episodes are recorded" in err
    assert "rerun the same command to resume" in err
    assert len(err.strip().splitlines()) == 1
    assert "raylet" not in out
    assert not folder.exists()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), seconds=30)
    slow.unlink()
    assert here(policy, command.out).exit_code == 0
    here(policy, tmp_path / "reference")
    whole: Results = results(command.out)
    assert whole == results(tmp_path / "reference")
    assert done.items() <= whole.items()


@pytest.mark.slow
def test_the_death_of_ray_while_it_starts_is_told(slow, tmp_path):
    process = Command(tmp_path / "run", "--workers", "1").start()
    until(lambda: any(p.name() == "gcs_server" for p in children(process)), process)
    named(children(process), "gcs_server").kill()
    killed = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert time.monotonic() - killed < 50  # Ray itself reports it after 60 s
    assert err.startswith("apt-bench: ")
    assert "Ray" in err
    assert len(err.strip().splitlines()) == 1


@pytest.fixture
def private_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ray's folders are made here, where no other test sweeps. The path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as home:
        monkeypatch.setenv("TMPDIR", home)
        monkeypatch.setattr(ray_folder, "homes", lambda: [home])
        yield Path(home)


def test_what_stays_when_driver_and_reaper_are_killed_is_swept_by_the_next_run(slow, private_home, tmp_path):
    command = Command(tmp_path / "run", "--workers", "1")
    process = command.start()
    command.wait_for(1, process)
    family = children(process)
    folder = folder_of(family)
    assert folder.parent == private_home
    sweep()
    assert folder.exists()  # in use
    for one in (named(family, "reaper.py"), process, *family):  # Ray's helpers would run for another minute
        one.kill()
    process.communicate()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), seconds=30)
    assert folder.exists()
    sweep()
    assert not folder.exists()


def test_only_what_is_provably_dead_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_folder, "homes", lambda: [str(tmp_path)])
    names = ("dead", "locked", "open", "link")
    dead, locked, used, link = (tmp_path / f"{PREFIX}{name}" for name in names)
    for folder in (dead, locked, used):
        (folder / "r").mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    handle = lock(locked)
    assert handle is not None
    with open(used / "r" / "log", "w"):
        sweep()
    assert not dead.exists()
    assert locked.exists()
    assert used.exists()
    assert link.is_symlink()
    os.close(handle)
    sweep()
    assert not locked.exists()
    assert not used.exists()
    assert (tmp_path / "elsewhere").exists()


def test_a_folder_too_long_for_sockets_is_passed_over(tmp_path, monkeypatch):
    long, short = tmp_path / ("x" * 80), Path("/tmp")
    long.mkdir()
    monkeypatch.setattr(ray_folder, "homes", lambda: [str(long), "/nowhere", str(short)])
    folder, handle = ray_folder.short_folder()
    assert Path(folder).parent == short
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert list(Path(folder).iterdir()) == list(long.iterdir()) == []
    assert handle is not None
    os.close(handle)
    Path(folder).rmdir()
    monkeypatch.setattr(ray_folder, "homes", lambda: [str(long), "/nowhere"])
    with pytest.raises(RayLost, match="Set TMPDIR to a folder with a short path"):
        ray_folder.short_folder()


def test_the_environment_is_given_back(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    before = dict(os.environ)
    with cluster._environment({"RAY_AUTH_TOKEN": None, "RAY_AUTH_MODE": "token", "PYTHONPATH": "/x"}):
        assert "RAY_AUTH_TOKEN" not in os.environ
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert dict(os.environ) == before


def test_a_policy_whose_process_keeps_dying_while_it_loads_ends_the_run(address, tmp_path):
    command = Command(tmp_path / "run", "--ray-address", address, policy="tests.toy:DyingPolicy")
    err = command.run(expect=1)
    assert "The process of policy 'tests.toy:DyingPolicy' died 3 times while it loaded." in err
    assert len(err.strip().splitlines()) == 1


def test_a_policy_killed_while_it_loads_is_loaded_again(address, tmp_path, monkeypatch):
    gate = tmp_path / "gate"
    words = ("--ray-address", address, "--workers", "1", "--episodes", "1", "--policy-arg", f"die={gate}")
    gate.touch()
    Command(tmp_path / "run", *words, policy="tests.toy:DyingPolicy").run()
    assert not gate.exists()
    assert len(results(tmp_path / "run")) == 4


def test_a_cluster_that_is_not_there_is_bad_input(tmp_path):
    err = Command(tmp_path / "run", "--ray-address", "127.0.0.1:9").run(expect=2)
    assert err.startswith("apt-bench: No server listens at '127.0.0.1:9' (")
    assert len(err.strip().splitlines()) == 1
