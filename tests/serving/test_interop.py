"""`apt-bench serve` with the genuine openpi-client and vla-eval. `scripts/interop.sh` makes their environments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.policies.base import Policy
from apt_bench.policies.preprocessing import resize
from apt_bench.policies.registry import find_policy
from apt_bench.policies.simple import RandomPolicy
from apt_bench.serving.episodes import Episodes, Said
from apt_bench.serving.observations import chained
from apt_bench.suites import load_suite
from tests.serving.helpers import STATE, at_once
from tests.serving.test_command import command

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / "build" / "interop"
HERE = Path(__file__).parent / "interop"
CLIENTS, REQUESTS = 4, 3

pytestmark = pytest.mark.skipif(
    not all((ENVIRONMENTS / name / "installed").exists() for name in ("openpi", "vla-eval")),
    reason="bash scripts/interop.sh makes the environments of the genuine clients",
)


def port(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip().rpartition(":")[2]


def openpi_clients(process: subprocess.Popen[str], prompt: str, folder: Path) -> tuple[np.ndarray, ...]:
    """The images that four genuine clients sent at once, the chunks that they got, and what a bad request printed."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (CLIENTS, REQUESTS, 224, 224, 3), np.uint8)
    states = np.tile(STATE.astype(np.float64), (CLIENTS, REQUESTS, 1))
    np.savez(folder / "in.npz", images=images, states=states, prompts=[prompt] * CLIENTS)
    done = subprocess.run(
        [
            ENVIRONMENTS / "openpi/bin/python",
            HERE / "openpi_clients.py",
            port(process),
            folder / "in.npz",
            folder / "out.npz",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "refused:" in done.stdout
    assert "observation/" in done.stdout
    with np.load(folder / "out.npz") as file:
        return images, file["chunks"]


def in_process(policy: Policy, image: np.ndarray, prompt: str, step: int, suite: str | None) -> np.ndarray:
    """The chunk for the first episode of an openpi client."""
    spec, cameras = Episodes(suite).find(Said(prompt), "openpi", 0, 0)
    large = resize(image, (256, 256))
    observation = Observation(
        {AGENTVIEW: large, WRIST: large},
        STATE,
        prompt,
        spec.id,
        step,
        cameras=cameras(STATE),
        noise_key=spec.noise_key,
    )
    return policy.act([observation])[0]


def test_openpi_clients_get_the_chunks_of_the_policy(tmp_path):
    with command("--policy", "random", "--protocol", "openpi", "--port", "0") as process:
        images, chunks = openpi_clients(process, "open it", tmp_path)
    for i in range(CLIENTS):
        for n in range(REQUESTS):
            wanted = in_process(RandomPolicy(), images[i, n], "open it", 10 * n, None)
            np.testing.assert_array_equal(chunks[i, n], wanted)


@pytest.mark.slow
def test_openpi_clients_get_the_chunks_of_apt_mini(tmp_path):
    (prompt,) = (s.prompt for s in load_suite("libero_pro").select(["goal_task"], ["2"], 1))
    words = ["--policy", "apt_mini", "--protocol", "openpi", "--port", "0", "--suite", "libero_pro"]
    with command(*words) as process:
        images, chunks = openpi_clients(process, prompt, tmp_path)
    policy = find_policy("apt_mini").load()
    for i in range(CLIENTS):
        for n in range(REQUESTS):
            step = policy.spec.execute * n
            wanted = in_process(policy, images[i, n], prompt, step, "libero_pro")
            np.testing.assert_array_equal(chunks[i, n], chained(wanted, STATE))


def vla_eval(port: str, benchmark: dict, folder: Path) -> list[dict]:
    """The episodes of a genuine `vla-eval run`, from its own results."""
    config = {"benchmarks": [benchmark], "output_dir": str(folder / "out"), "render": "cpu"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [
            ENVIRONMENTS / "vla-eval/bin/vla-eval",
            *("run", "--no-docker", "--yes", "-c", folder / "config.yaml"),
            *("--server-url", f"ws://127.0.0.1:{port}"),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": str(HERE), "TOY_OUT": str(folder)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stderr[-3000:])
    (results,) = (folder / "out").rglob("*.json")
    found = json.loads(results.read_text())
    return [episode for task in found["tasks"] for episode in task["episodes"]]


def test_four_vla_evals_at_once_run_a_benchmark(tmp_path):
    """Every one runs the same episodes in one connection, so all of them get the same actions."""
    toy = {"benchmark": "toy_benchmark:ToyBenchmark", "episodes_per_task": 2}
    folders = [tmp_path / str(i) for i in range(CLIENTS)]
    for folder in folders:
        folder.mkdir()
    with command("--policy", "random", "--protocol", "vla-eval", "--port", "0") as process:
        server = port(process)
        runs = at_once([lambda folder=folder: vla_eval(server, toy, folder) for folder in folders])
    stored: dict[str, list[np.ndarray]] = {}
    for folder, episodes in zip(folders, runs, strict=True):
        assert [e["metrics"]["success"] for e in episodes] == [True] * 4
        for path in folder.glob("task*.npz"):
            with np.load(path) as file:
                assert file["asked"].tolist() == [False, True, True]  # `random` needs no wrist image
                stored.setdefault(path.name, []).append(file["actions"])
    assert len(stored) == 4
    for actions in stored.values():
        assert [a.shape for a in actions] == [(7, 7)] * CLIENTS
        assert np.abs(actions[0]).max() > 0.5
        for other in actions[1:]:
            np.testing.assert_array_equal(other, actions[0])


@pytest.mark.sim
@pytest.mark.slow
def test_a_replay_of_the_expert_succeeds_in_vla_evals_libero_pro(tmp_path):
    run = [sys.executable, "-m", "apt_bench", "run", "--suite", "libero_pro", "--policy", "oracle"]
    run += ["--cells", "object_task", "--tasks", "0", "--episodes", "1", "--save-actions", "--workers", "0"]
    subprocess.run([*run, "--out", tmp_path / "run"], check=True, timeout=900, capture_output=True)
    libero = {
        "benchmark": "vla_eval.benchmarks.libero_pro.benchmark:LIBEROProBenchmark",
        "params": {"suite": "libero_object", "perturbation": "task"},
        "max_tasks": 1,
        "episodes_per_task": 1,
    }
    with command(
        "--policy", "replay", str(tmp_path / "run"), "--protocol", "vla-eval", "--port", "0"
    ) as process:
        (episode,) = vla_eval(port(process), libero, tmp_path)
    assert episode["metrics"]["success"]


@pytest.mark.sim
@pytest.mark.slow
def test_apt_mini_runs_in_vla_evals_libero_pro(tmp_path):
    libero = {
        "benchmark": "vla_eval.benchmarks.libero_pro.benchmark:LIBEROProBenchmark",
        "params": {"suite": "libero_object", "perturbation": "task"},
        "max_tasks": 1,
        "max_steps": 12,
    }
    with command("--policy", "apt_mini", "--protocol", "vla-eval", "--port", "0") as process:
        (episode,) = vla_eval(port(process), libero, tmp_path)
    assert episode["steps"] == 12
    assert "error" not in str(episode.get("failure_reason"))
