"""One Ray for all of these tests. Every command joins it as a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from apt_bench.rollout.runner import RunOptions, RunResult, run
from tests.rollout.commands import ROOT, SUITE


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def here(tmp_path: Path) -> Callable[..., RunResult]:
    """Run in this process, without Ray."""

    def go(policy: str = "tests.toy:PushPolicy", out: Path | None = None, **more: object) -> RunResult:
        if "against" in more:
            more["stop_when"] = "decided"
        options = RunOptions.of(suite=SUITE, policy=policy, out=out or tmp_path / "run", workers="0", **more)  # type: ignore[arg-type]
        with open("/dev/null", "w") as nowhere:
            return run(options, Console(file=nowhere))

    return go


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def address(faults: Path) -> Iterator[str]:
    """A Ray with resources for several commands. Its workers read the faults that tests request."""
    import ray

    patch = pytest.MonkeyPatch()
    patch.setenv("TOY_FAULTS", str(faults))
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 * 2**20,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    patch.undo()
