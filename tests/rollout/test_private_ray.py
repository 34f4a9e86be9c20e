"""The Ray of a run on a hostile machine: no other process can join it, and no setting or file there disturbs it.

One run, in a folder and an environment in which each of these has broken a run before."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from apt_bench.rollout.ray_folder import PREFIX
from tests.rollout.commands import ROOT, Results, results, until

SHADOWS = ("ray", "numpy", "token", "random", "queue", "yaml", "rich", "typer", "mujoco", "torch", "scipy")
POLICY = """
import os, time
from tests.toy import PushPolicy


class MyPolicy(PushPolicy):
    def act(self, observations):
        while "/init0/" not in observations[0].episode and os.path.exists(os.environ["GATE"]):
            time.sleep(0.05)
        return super().act(observations)
"""
FEW = {"RAY_NUM_REDIS_GET_RETRIES": "2"}  # tries of a client
CLIENT = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
print("in:", ray.get(ray.remote(lambda: 42).options(num_cpus=0).remote()))
"""


@dataclass
class Hostile:
    """A run on a hostile machine, and what was observed meanwhile."""

    process: subprocess.Popen[str]
    family: list[psutil.Process]
    address: str
    token: Path
    home: Path
    out: Path
    gate: Path  # the run continues when this file is removed

    def client(self, **environ: str) -> subprocess.Popen[str]:
        """Another process that tries to join this Ray."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, self.address],
            # Without this a client looks for 127.0.0.1 at this machine's address in the network, where nothing listens.
            env=clean | {"HOME": str(self.home), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **FEW, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    base = tmp_path_factory.mktemp("hostile")
    folder, packages, home, gate = (base / name for name in ("work", "packages", "home", "gate"))
    long = base / ("long" * 20)
    for path in (folder, packages, long):
        path.mkdir()
    home.touch()  # no folder: nothing can be written there
    gate.touch()
    for place in (folder, packages):
        for name in SHADOWS:
            (place / f"{name}.py").write_text(f"raise RuntimeError('{place}/{name}.py was imported')\n")
    (folder / "mine.py").write_text(POLICY)
    (folder / "run").write_text('"$@"\n')
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "HOME": str(home),
        "TMPDIR": str(long),
        "GATE": str(gate),
        "PYTHONPATH": f"{packages}:{ROOT}",
        "RAY_ADDRESS": "192.0.2.1:6379",
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN": "somebody-elses",
        "RAY_RUNTIME_ENV_HOOK": "nowhere.hook",
        **dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"), "http://127.0.0.1:9"),
    }
    out = base / "run"
    words = ["run", "--suite", str(ROOT / "tests/toy_suite.yaml"), "--policy", "mine:MyPolicy"]
    words += ["--out", str(out), "--workers", "2"]
    process = subprocess.Popen(
        # bash under uv's name, with a script called `run`: what Ray takes for `uv run`
        ["uv", "run", sys.executable, "-c", "from apt_bench.cli import main; main()", *words],
        executable="/bin/bash",
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
    )
    until(lambda: (out / "episodes.jsonl").exists(), process)
    family = psutil.Process(process.pid).children(recursive=True)
    (gcs,) = [p for p in family if p.name() == "gcs_server"]
    (port,) = [c.laddr.port for c in gcs.net_connections() if c.status == psutil.CONN_LISTEN]
    token = Path(gcs.environ()["RAY_AUTH_TOKEN_PATH"])
    yield Hostile(process, family, f"127.0.0.1:{port}", token, home, out, gate)
    process.kill()


def test_only_a_client_with_the_runs_token_gets_in(hostile: Hostile):
    clients = {
        "none": hostile.client(),
        "wrong": hostile.client(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
        "right": hostile.client(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=hostile.token.read_text()),
    }
    said = {name: client.communicate(timeout=120) for name, client in clients.items()}
    assert said["right"][0] == "in: 42\n", said["right"]
    for name in ("none", "wrong"):
        assert clients[name].returncode != 0
        assert "in:" not in said[name][0]
        assert "InvalidAuthToken" in said[name][1]


def test_the_token_is_in_a_private_file_and_on_no_command_line(hostile: Hostile):
    token = hostile.token.read_text()
    assert len(token) == 64
    assert hostile.token.stat().st_mode & 0o777 == 0o600
    assert hostile.token.parent.stat().st_mode & 0o777 == 0o700
    for process in hostile.family:
        if process.is_running():
            assert token not in " ".join(process.cmdline())
            assert token not in process.environ().values()


def test_every_port_is_on_the_loopback_interface(hostile: Hostile):
    ports = [c for p in hostile.family if p.is_running() for c in p.net_connections() if c.status == "LISTEN"]
    assert len(ports) >= 4
    assert {c.laddr.ip.removeprefix("::ffff:") for c in ports} == {"127.0.0.1"}


def test_a_long_tmpdir_is_not_where_the_sockets_go(hostile: Hostile):
    assert hostile.token.parent.name.startswith(PREFIX)
    assert len(str(hostile.token.parent)) < 45


def test_nothing_of_that_breaks_the_run(hostile: Hostile, here):
    hostile.gate.unlink(missing_ok=True)
    out, err = hostile.process.communicate(timeout=240)
    assert hostile.process.returncode == 0, out + err
    assert err == ""
    here(out=hostile.out.with_name("reference"))
    found: Results = results(hostile.out)
    assert found == results(hostile.out.with_name("reference"))
    assert not hostile.token.parent.exists()
    assert hostile.home.read_bytes() == b""
