"""Runs in which one connection to a starVLA server answers all workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.policies.remote.servers import Seen, StarVla
from tests.policies.remote.test_batches import vary
from tests.rollout.commands import Command, records, results


@pytest.fixture
def command(address: str, tmp_path: Path) -> Callable[..., Command]:
    def make(*servers: str, out: str = "run", workers: int = 2) -> Command:
        addresses = [word for server in servers for word in ("--server", server)]
        ray = ["--ray-address", address] if workers else []
        words = ["--cells", "push", "--episodes", "3", "--policy-arg", "batch=4", "--workers", str(workers)]
        return Command(tmp_path / out, *words, *ray, *addresses, policy="langforce")

    return make


def test_two_workers_and_two_servers(command: Callable[..., Command]) -> None:
    asked = threading.Event()

    def ask_second(seen: Seen) -> np.ndarray:
        asked.set()
        return vary(seen)

    def ask_first(seen: Seen) -> np.ndarray:
        if second.clients:  # the run has begun: no worker may run all episodes before the other has started
            asked.wait(60)
        return vary(seen)

    with StarVla(answer=ask_first) as first, StarVla(answer=ask_second) as second:
        (two := command(first.url, second.url)).run()
        assert first.seen
        assert second.seen
        (local := command(first.url, out="local", workers=0)).run()
    assert results(two.out) == results(local.out)
    assert len(results(two.out)) == 6
    run = json.loads((two.out / "run.json").read_text())
    assert run["canaries"]["warnings"] == []
    assert (run["policy"]["placement"], run["policy"]["max_batch"]) == ("actor", 4)
    assert all(record.notes["requests"] == record.decisions for record in records(two.out))


def test_a_server_that_dies_and_returns_on_another_port(command: Callable[..., Command]) -> None:
    with StarVla() as server:

        def once(seen: Seen) -> np.ndarray:
            if len(server.seen) > 12:
                server.fault, server.status = "drop", 503
            return vary(seen)

        server.answer = once
        (run := command(server.url)).run(expect=1)
    lost = [record for record in records(run.out) if record.outcome == "error"]
    assert lost
    assert len(results(run.out)) < 6
    assert all("server" in str(record.error) for record in lost)
    with StarVla(answer=vary) as server:
        command(server.url).run()
    assert len(results(run.out)) == 6


def test_a_server_that_changes_its_checkpoint_during_a_run(command: Callable[..., Command]) -> None:
    with StarVla() as server:

        def once(seen: Seen) -> np.ndarray:
            if len(server.seen) == 12:
                server.greeting["ckpt_path"] = "/ckpt/steps_40000.pt"
            server.fault = "drop" if len(server.seen) == 12 else ""
            return vary(seen)

        server.answer = once
        err = command(server.url, workers=1).run(expect=2)
    assert "not the one that the run began with" in err
