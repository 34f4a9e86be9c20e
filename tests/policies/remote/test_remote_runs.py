"""`apt-bench run --server` on the toy suite: a server that dies and returns elsewhere, and one that changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apt_bench.policies.registry import find_policy
from apt_bench.rollout.workers import RolloutWorker, Settings
from apt_bench.suites import load_suite
from tests.policies.remote.servers import CHUNK, OpenPi, Seen, StarVla
from tests.rollout.commands import ROOT, SUITE, records, results

pytestmark = pytest.mark.usefixtures("hurry")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def vary(seen: Seen) -> np.ndarray:
    """Depends on the image and on the prompt, as the canaries of a run demand."""
    return np.clip(CHUNK * (0.5 + seen.agentview.mean() / 300) + len(seen.prompt) / 1000, -1, 1)


def push(seen: Seen) -> np.ndarray:
    assert seen.state is not None
    chunk = vary(seen)
    chunk[:, :2] = 0.7 * ((seen.state[2:4] - seen.state[:2]) * 3 - seen.state[4:6])
    return chunk


@pytest.fixture
def go(cli: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    def run(*servers: str, policy: str = "pi05", out: str = "run", code: int = 0) -> str:
        words = [
            "run",
            "--suite",
            SUITE,
            "--cells",
            "push",
            "--episodes",
            "3",
            "--workers",
            "0",
            "--policy",
            policy,
        ]
        addresses = [word for server in servers for word in ("--server", server)]
        return cli(*words, *addresses, "--out", tmp_path / out, code=code)

    return run


def test_a_server_that_dies_and_returns_on_another_port(go: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with OpenPi(answer=push) as server:
        go(server.url, out="whole")
    assert all(record.notes["requests"] == record.decisions > 1 for record in records(tmp_path / "whole"))

    with OpenPi() as server:

        def once(seen: Seen) -> np.ndarray:
            if len(server.seen) > 12:
                server.fault, server.status = "drop", 503
            return push(seen)

        server.answer = once
        go(server.url, code=1)
    done = results(out)
    lost = [record for record in records(out) if record.outcome == "error"]
    assert 0 < len(done) < 6
    assert lost
    assert all("server is gone" in str(record.error) for record in lost)
    with OpenPi(answer=push) as server:
        go(server.url)
        assert server.clients >= 1
    assert results(out) == results(tmp_path / "whole")
    assert "127.0.0.1" not in json.dumps(json.loads((out / "run.json").read_text())["policy"])


def test_a_run_of_a_version_without_the_interface_is_resumed(go: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with OpenPi(answer=push) as server:
        go(server.url)
        whole = results(out)
        run = json.loads((out / "run.json").read_text())
        assert run["policy"].pop("interface")["resize"] == "bilinear_pad"
        (out / "run.json").write_text(json.dumps(run))
        lines = (out / "episodes.jsonl").read_text().splitlines(keepends=True)
        (out / "episodes.jsonl").write_text("".join(lines[:2]))
        seen = len(server.seen)
        go(server.url)
        assert 0 < len(server.seen) - seen < seen
    assert results(out) == whole
    assert json.loads((out / "run.json").read_text())["policy"]["interface"]["chunking"] == "client"


def test_the_name_of_a_run_directory_does_not_depend_on_the_interface() -> None:
    with OpenPi(answer=push) as server:
        ref = find_policy("pi05", servers=[server.url])
        assert ref.label(ref.load().spec) == "pi05-1c046e"  # as of the version without it


def test_another_server_takes_over(go: Callable[..., str], tmp_path: Path) -> None:
    with OpenPi(answer=push) as first, OpenPi(answer=push) as second:

        def once(seen: Seen) -> np.ndarray:
            if len(first.seen) > 5:
                first.fault, first.status = "drop", 503
            return push(seen)

        first.answer = once
        go(first.url, second.url)
        assert second.seen
    assert len(results(tmp_path / "run")) == 6


@pytest.mark.parametrize("change", [{"ckpt_path": "/ckpt/steps_40000.pt"}, {"default_unnorm_key": "bridge"}])
def test_another_checkpoint_is_another_policy(
    change: dict[str, Any], go: Callable[..., str], cli: Callable[..., str], tmp_path: Path
) -> None:
    with StarVla(answer=vary) as server:
        go(server.url, policy="langforce")
    with StarVla(answer=vary, greeting=change) as server:
        words = ["run", "--suite", SUITE, "--cells", "push", "--episodes", "4", "--workers", "0"]
        err = cli(*words, "--policy", "langforce", "--server", server.url, "--out", tmp_path / "run")
    assert "another p" in err  # policy, or protocol


def test_a_server_that_changes_its_checkpoint_during_a_run(go: Callable[..., str], tmp_path: Path) -> None:
    with StarVla() as server:

        def once(seen: Seen) -> np.ndarray:
            if len(server.seen) == 14:
                server.greeting["ckpt_path"] = "/ckpt/steps_40000.pt"
                server.fault = "drop"
            return vary(seen)

        server.answer = once
        err = go(server.url, policy="langforce", code=2)
        assert "not the one that the run began with" in err


def test_a_second_server_of_another_checkpoint_is_refused() -> None:
    other = {"ckpt_path": "/ckpt/steps_40000.pt"}
    with StarVla(answer=vary) as first, StarVla(answer=vary, greeting=other) as second:
        ref = find_policy("langforce", servers=[first.url, second.url])
        settings = Settings(ref, ref.load().spec, execute=8)
        spec = load_suite(SUITE).select(["push"], [], 1)[0]
        workers = [RolloutWorker([settings.for_worker(number)]) for number in (0, 1)]
        right, wrong = (worker.run(spec) for worker in workers)
        for worker in workers:
            worker.close()
    assert right.record is not None
    assert "not the one that the run began with" in str(wrong.fatal)
    assert not second.seen


def test_a_reply_of_the_wrong_shape_fails_the_episode(go: Callable[..., str], tmp_path: Path) -> None:
    with OpenPi() as server:

        def once(seen: Seen) -> np.ndarray:
            server.fault = "nan" if len(server.seen) > 20 else ""
            return push(seen)

        server.answer = once
        go(server.url)
    bad = [r for r in records(tmp_path / "run") if r.error]
    assert {(r.outcome, r.failure, r.attempt) for r in bad} == {("failure", "policy_fault", 1)}
    assert all("NaN" in str(r.error) for r in bad)
