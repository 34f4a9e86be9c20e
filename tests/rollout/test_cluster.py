"""Runs on a Ray cluster of several nodes, all of them on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from apt_bench.core.errors import UserError
from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout.engine import gpu_places, policy_actors
from apt_bench.rollout.user_code import UserCode, collect_user_code
from tests.rollout.commands import ROOT, actors, records, results, until

MODULE = """
import os, time
from dataclasses import replace
from pathlib import Path

import ray

from apt_bench.suites import Task
from tests.toy import GpuPushPolicy, ToyEnv


def where():
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def tasks(cell):
    return [
        Task(f"push_{side}_{i}", {"file": f"push {side}"}, {"side": side}, group=f"scene{i}", inits=4)
        for i, side in enumerate(("left", "right") * 3)
    ]


class PlacedEnv(ToyEnv):
    def step_chunk(self, actions, render=True):
        while self.spec.key.init and os.path.exists(os.environ["GATE"]):
            Path(os.environ["GATE"] + where()).touch()
            time.sleep(0.05)
        return super().step_chunk(actions, render)

    def outcome(self):
        found = super().outcome()
        return replace(found, events={**found.events, "node": where(), "process": os.getpid()})


class PlacedPolicy(GpuPushPolicy):
    spec = replace(GpuPushPolicy.spec, name="placed")

    def __init__(self, weights=None):
        super().__init__()
        if weights:
            Path(weights).read_bytes()

    def notes(self, episode):
        return {"node": where()}
"""
SUITE = """
name: placed
version: 1
title: Placed
env: placed:PlacedEnv
tasks: placed:tasks
episodes: 4
settle_steps: 2
seed: 7
cells:
  push: {label: Push, max_steps: 30, instruction: file}
"""


class Driver:
    """`apt-bench run` in a folder with the user's own module."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.gate = folder, folder.with_name("gate")
        folder.mkdir()
        (folder / "placed.py").write_text(MODULE)
        (folder / "suite.yaml").write_text(SUITE)
        (folder / "weights.bin").write_bytes(b"1")

    def start(self, out: str, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from apt_bench.cli import main; main()", "run"]
        command += ["--suite", "suite.yaml", "--policy", "placed:PlacedPolicy", "--out", out, *words]
        environ = os.environ | {"PYTHONPATH": str(ROOT), "GATE": str(self.gate)}
        return subprocess.Popen(
            command, cwd=self.folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, out: str, *words: str, expect: int = 0) -> str:
        process = self.start(out, *words)
        said, err = process.communicate(timeout=400)
        assert process.returncode == expect, said + err
        return err


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    made = Driver(tmp_path_factory.mktemp("cluster") / "driver")
    made.run("alone", "--workers", "0")
    return made


@pytest.fixture
def cluster(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "200")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("GATE", str(driver.gate))  # the workers inherit it
    driver.gate.unlink(missing_ok=True)  # a test that failed leaves it
    internals: Any = ray._raylet
    internals.Config.initialize("")  # reads the environment
    made = Cluster()
    yield made
    made.shutdown()


SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.mark.slow
def test_a_node_dies_another_joins_and_the_results_are_those_of_one_machine(driver, cluster):
    head = cluster.add_node(num_cpus=1, **SMALL)
    lost = cluster.add_node(num_cpus=1, **SMALL)
    gpu = cluster.add_node(num_cpus=1, num_gpus=1, **SMALL)
    driver.gate.touch()
    process = driver.start("run", "--ray-address", cluster.address, "--workers", "4", "--hang-timeout", "600")
    path = driver.folder / "run/episodes.jsonl"
    until(
        lambda: path.exists() and path.read_bytes().count(b"\n") >= 3, process
    )  # initial state 0 of three scenes
    assert len(actors("RolloutActor")) == 3  # the fourth worker waits for a core
    cluster.remove_node(lost, allow_graceful=False)
    late = cluster.add_node(num_cpus=2, **SMALL)
    until(lambda: Path(f"{driver.gate}{late.node_id}").exists(), process)  # it has an episode
    until(lambda: len(actors("RolloutActor")) == 4, process)
    driver.gate.unlink()
    said, err = process.communicate(timeout=400)
    assert process.returncode == 0, said + err

    assert results(driver.folder / "run") == results(driver.folder / "alone")
    found = records(driver.folder / "run")
    assert {r.notes["node"] for r in found} == {gpu.node_id}
    nodes = {r.events["node"] for r in found}
    assert {head.node_id, gpu.node_id, late.node_id} <= nodes
    assert nodes <= {head.node_id, gpu.node_id, late.node_id, lost.node_id}
    repeated = [r for r in found if r.attempt > 1]
    assert len(repeated) == 1, "only the lost node's episode runs again"

    scenes: dict[int, list[str]] = {}
    for record in found:
        scenes.setdefault(record.events["process"], []).append(record.key.task)
    changes = sum(a != b for order in scenes.values() for a, b in pairwise(order))
    assert changes <= 6, scenes  # 24 episodes of 6 scenes


@pytest.mark.parametrize(("each", "places"), [(1, 4), (2, 1), (0.5, 8), (0.1, 40), (4, 0)])
def test_a_policy_uses_the_gpus_of_one_machine(monkeypatch, each, places):
    nodes = [(1, True), (3, True), (8, False), (None, True)]
    found = [{"Alive": alive, "Resources": {"GPU": gpus} if gpus else {}} for gpus, alive in nodes]
    monkeypatch.setattr("ray.nodes", lambda: found)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": 4})
    ref = PolicyRef("wide", "placed:WidePolicy", num_gpus=each)
    assert gpu_places(ref) == places
    if not places:
        with pytest.raises(UserError, match=r"needs 4 GPU\(s\) of one machine; Ray sees 4 in all"):
            policy_actors(ref, 8, ".")


def _may_unshare() -> bool:
    program = shutil.which("unshare")
    words = ["-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(program) and subprocess.run([program, *words], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _may_unshare(), reason="needs the permission to mount")
def test_a_node_that_does_not_see_the_drivers_folder(driver, cluster):
    cluster.add_node(num_cpus=0, **SMALL)
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--block"]
    ray += ["--num-cpus=1", "--num-gpus=1", "--min-worker-port=0", "--max-worker-port=0"]
    hide = f'mount -t tmpfs none {driver.folder} && exec "$@"'
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", hide, "node", *ray], stdout=subprocess.PIPE, text=True
    )
    try:
        words = ("--ray-address", cluster.address, "--workers", "1")
        until(lambda: _gpus(cluster.address) == 1, node)
        driver.run("blind", *words)
        assert results(driver.folder / "blind") == results(driver.folder / "alone")
        weights = str(driver.folder / "weights.bin")
        err = driver.run("lacking", *words, "--policy-arg", f"weights={weights}", expect=2)
        assert f"does not have {weights} (argument 'weights')" in err
        assert "on the hub" in err
    finally:
        node.terminate()
        node.wait(60)


def _gpus(address: str) -> float:
    code = "import ray, sys; ray.init(sys.argv[1], logging_level='CRITICAL', log_to_driver=False);"
    code += "print(ray.cluster_resources().get('GPU', 0))"
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=120)
    return float(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else -1


# --- the user's modules, without Ray ------------------------------------------------------------------


IMPORT = """
import json, sys
from pathlib import Path
from apt_bench.rollout.user_code import UserCode
files = {name: (path, text.encode()) for name, (path, text) in json.loads(sys.argv[1]).items()}
UserCode(files, {}).install()
import mine, package.part
print(mine.NAME, package.part.NAME, Path(mine.__file__).parent)
"""


def test_modules_are_written_only_where_the_same_files_are_missing(tmp_path, monkeypatch):
    folder = tmp_path / "driver"
    (folder / "package").mkdir(parents=True)
    (folder / "mine.py").write_text("NAME = 'new'\n")
    (folder / "package/__init__.py").touch()
    (folder / "package/part.py").write_text("NAME = 'part'\n")
    (folder / "package/scene.xml").write_text("<mujoco/>")
    (folder / "package/weights.bin").write_bytes(b"0" * 2_000_000)
    (folder / "unused.py").write_text("raise RuntimeError\n")
    (folder / "numpy.py").write_text("raise RuntimeError\n")  # the installed one was imported
    monkeypatch.syspath_prepend(str(folder))
    for name in ("mine", "package.part"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    __import__("package.part")
    code = collect_user_code(PolicyRef("mine", "mine:Absent"), "absent:Env", str(folder))
    (folder / "numpy.py").unlink()
    ours = {name: value for name, value in code.files.items() if not name.startswith("tests/")}
    assert sorted(ours) == ["mine.py", "package/__init__.py", "package/part.py", "package/scene.xml"]

    def imported(search: str) -> str:
        texts = {name: (path, content.decode()) for name, (path, content) in ours.items()}
        words = [sys.executable, "-c", IMPORT, json.dumps(texts)]
        return subprocess.check_output(words, text=True, env=os.environ | {"PYTHONPATH": search}).strip()

    assert imported(f"{ROOT}:{folder}") == f"new part {folder}"
    (folder / "mine.py").rename(folder / "away.py")
    name, part, place = imported(str(ROOT)).split()
    assert (name, part) == ("new", "part")
    assert Path(place).name.startswith("apt-bench-scratch-code-")
    assert not Path(place).exists()  # removed when the process ends


def test_a_message_names_what_a_machine_lacks(tmp_path):
    there, absent = tmp_path / "there", tmp_path / "absent"
    there.touch()
    code = UserCode({}, {"first": str(there), "second": str(absent)})
    assert f"does not have {absent} (argument 'second')" in code.explain("No weights.")
    assert UserCode({}, {"first": str(there)}).explain("No weights.") == "No weights."
    assert "Install the same packages" in UserCode({}, {}).explain("Cannot import 'mine'.")
