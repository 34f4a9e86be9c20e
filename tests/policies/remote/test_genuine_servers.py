"""Whole episodes through servers that are written with the genuine packages: openpi-client, vla-eval and json-numpy.

Each runs in an environment of its own, which `scripts/interop.sh` makes. A server executes an expert's stored actions
as long as image, prompt, state and step are right.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apt_bench.envs.base import AGENTVIEW, WRIST
from apt_bench.envs.libero import LiberoEnv
from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.policies.registry import find_policy
from apt_bench.rollout.episode import LocalClient, run_episode
from apt_bench.suites import load_suite
from tests.policies.remote.episodes import Expert, expert_of

ENVIRONMENTS = Path(__file__).parents[3] / "build" / "interop"
HERE = Path(__file__).parent / "interop"

SERVERS = {
    "pi05": ("openpi", "openpi_server.py", "ws", 5),
    "oft": ("vla-eval", "vla_eval_server.py", "ws", 4),
    "oft-rest": ("openpi", "oft_server.py", "http", 8),
}
"""Policy -> environment, server, scheme, and control steps between the observations that the model sees."""

pytestmark = pytest.mark.skipif(
    not all((ENVIRONMENTS / name / "installed").exists() for name in ("openpi", "vla-eval")),
    reason="bash scripts/interop.sh makes the environments of the genuine packages",
)


@pytest.fixture(scope="module", params=["tabletop", pytest.param("LIBERO-PRO", marks=pytest.mark.sim)])
def expert(request: pytest.FixtureRequest) -> Iterator[Expert]:
    libero = request.param == "LIBERO-PRO"
    suite, cells, tasks = (
        ("libero_pro", ["object_task"], ["0"]) if libero else ("rigid_pick_place", ["so"], [])
    )
    env = LiberoEnv() if libero else TabletopEnv()
    yield expert_of(env, load_suite(suite).select(cells, tasks, 3))
    env.close()


@contextmanager
def server(name: str, expert: Expert, folder: Path) -> Iterator[str]:
    """Its address."""
    environment, script, scheme, step = SERVERS[name]
    seen = expert.observations(step)
    np.savez(
        folder / "expert.npz",
        step=step,
        prompt=expert.spec.prompt,
        actions=expert.actions,
        agentview=[one.images[AGENTVIEW] for one in seen],
        wrist=[one.images[WRIST] for one in seen],
        state=[one.state for one in seen],
    )
    process = subprocess.Popen(
        [
            ENVIRONMENTS / environment / "bin/python",
            HERE / script,
            folder / "expert.npz",
            folder / "report.json",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield f"{scheme}://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.communicate()


def run(name: str, expert: Expert, folder: Path, **changes: Any) -> tuple[str, dict[str, Any]]:
    """Outcome of an episode, and what the server reports."""
    with server(name, expert, folder) as address:
        policy = find_policy(name, servers=[address]).load()
        spec = dataclasses.replace(expert.spec, max_steps=len(expert.actions) + 10, **changes)
        rollout = run_episode(expert.env, LocalClient(policy), spec, policy.spec, policy.spec.execute)
        policy.close()
    assert rollout.record.error is None
    return str(rollout.record.outcome), json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("name", SERVERS)
def test_an_episode_succeeds(name: str, expert: Expert, tmp_path: Path) -> None:
    outcome, report = run(name, expert, tmp_path)
    assert (outcome, report["wrong"]) == ("success", "")
    assert report["requests"] >= len(expert.actions) // SERVERS[name][3]


@pytest.mark.parametrize("name", SERVERS)
def test_with_another_prompt_it_fails(name: str, expert: Expert, tmp_path: Path) -> None:
    outcome, report = run(name, expert, tmp_path, prompt="pick up the black bowl")
    assert outcome != "success"
    assert report["wrong"] == "prompt"
