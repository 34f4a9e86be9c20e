import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # in the background of a shell; tests send it and wait for it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import HealthCheck, settings

from apt_bench.cli import main

_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("quick", max_examples=25, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=1500, **_COMMON)
settings.load_profile("quick")

ROLLOUT = Path(__file__).parent / "rollout"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of rollouts, which start Ray. Put files with simulations first, so that none starts last in CI."""
    for item in items:
        if item.path.is_relative_to(ROLLOUT):
            item.add_marker("medium")
    long = {item.path for item in items if item.get_closest_marker("sim")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call apt-bench in this process and return its stdout; for exit code 2, return its one line on stderr."""

    def call(*words: object, code: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["apt-bench", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert stop.value.code == code, out + err
        assert "Traceback" not in err
        if code == 2:
            assert len(err.strip().splitlines()) == 1, err
        return err if code == 2 else out

    return call
