"""An exception of an environment is the error of one episode. A policy's failure does not affect its environment."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from typing import ClassVar

import pytest

from apt_bench.core.errors import ServerLost
from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout import workers
from apt_bench.rollout.workers import Interrupted, Result, RolloutWorker, Settings
from apt_bench.suites import EpisodeSpec, load_suite
from tests.toy import PushPolicy, ToyEnv

HERE = __name__


class Unprintable(Exception):
    """Its message cannot be made, and it cannot be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise RuntimeError("no message")


class FaultyEnv(ToyEnv):
    """Raises the exception in `raises` once, and records when it is closed."""

    made = 0
    closed: ClassVar[list[FaultyEnv]] = []
    raises: BaseException | None = None
    closing: BaseException | float | None = None

    def __init__(self) -> None:
        super().__init__()
        FaultyEnv.made += 1

    def step_chunk(self, actions, render=True):
        error, FaultyEnv.raises = FaultyEnv.raises, None
        if error is not None:
            raise error
        return super().step_chunk(actions, render)

    def close(self):
        FaultyEnv.closed.append(self)
        if isinstance(self.closing, BaseException):
            raise self.closing
        time.sleep(self.closing or 0)


class LostOnce(PushPolicy):
    """Its server is lost once, and once more while the policy is made again."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        LostOnce.made += 1
        if LostOnce.made == 2:
            raise ServerLost("nobody answers yet")

    def act(self, observations):
        if LostOnce.made == 1:
            raise ConnectionResetError("gone in the middle")
        return super().act(observations)


class Raising(PushPolicy):
    def act(self, observations):
        raise SystemExit(0)


@pytest.fixture(autouse=True)
def _as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"made": 0, "closed": [], "raises": None, "closing": None}.items():
        monkeypatch.setattr(FaultyEnv, name, value)
    monkeypatch.setattr(LostOnce, "made", 0)
    monkeypatch.setattr(workers, "CLOSE_SECONDS", 0.2)


@pytest.fixture
def spec() -> EpisodeSpec:
    return dataclasses.replace(load_suite("tests/toy_suite.yaml").select(limit=1)[0], env=f"{HERE}:FaultyEnv")


def worker(policy: type[PushPolicy] = PushPolicy, **more: object) -> RolloutWorker:
    settings = Settings(PolicyRef("p", f"{policy.__module__}:{policy.__name__}"), policy.spec, 3)
    return RolloutWorker([settings], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("broken"), "RuntimeError: broken ("),
        (SystemExit(0), "SystemExit: 0 ("),
        (KeyboardInterrupt(), "KeyboardInterrupt:  ("),
        (GeneratorExit(), "GeneratorExit:  ("),
        (Unprintable(), "Unprintable (its message cannot be read) ("),
        (RuntimeError("two\nlines \x1b[31m"), r"RuntimeError: two lines \x1b[31m ("),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_an_environment_raises_is_an_error_of_the_episode(error, words, spec):
    mine = worker()
    FaultyEnv.raises = error
    lost = mine.run(spec)
    assert lost.record is None
    assert lost.error is not None
    assert lost.error.startswith(words)
    assert len(FaultyEnv.closed) == 1
    assert mine.run(spec, 2).record is not None
    assert FaultyEnv.made == 2


@pytest.mark.parametrize(
    "closing", [OSError("no close"), SystemExit(1), 1000.0], ids=["raises", "exits", "hangs"]
)
def test_an_environment_that_does_not_close_does_not_matter(closing, spec):
    mine = worker()
    FaultyEnv.raises, FaultyEnv.closing = RuntimeError("broken"), closing
    start = time.monotonic()
    assert "broken" in str(mine.run(spec).error)
    assert mine.run(spec, 2).record is not None
    assert time.monotonic() - start < 10
    assert FaultyEnv.closed


def test_a_lost_server_costs_neither_the_environment_nor_the_run(spec):
    mine = worker(LostOnce)
    lost = [mine.run(spec, 1), mine.run(spec, 2)]
    assert all(r.policy_lost and r.fatal is None for r in lost)
    assert ["gone in the middle" in str(lost[0].error), "nobody answers yet" in str(lost[1].error)] == [
        True,
        True,
    ]
    done: Result = mine.run(spec, 3)
    assert done.record is not None
    assert done.record.outcome in ("success", "timeout")
    assert (FaultyEnv.made, FaultyEnv.closed) == (1, [])


def test_a_policys_fault_costs_no_environment(spec):
    record = worker(Raising).run(spec).record
    assert record is not None
    assert record.failure == "policy_fault"
    assert (FaultyEnv.made, FaultyEnv.closed) == (1, [])


def test_the_harness_own_interruption_passes(spec):
    with pytest.raises(Interrupted):
        worker(interrupt=lambda: True).run(spec)


def test_an_environment_is_made_as_if_its_module_were_the_program(spec, capfd, tmp_path, monkeypatch):
    (tmp_path / "argued_environment.py").write_text(
        "import argparse\n"
        "def make():\n"
        "    parser = argparse.ArgumentParser()\n"
        "    parser.add_argument('scene')\n"
        "    parser.parse_args()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    error = worker().run(dataclasses.replace(spec, env="argued_environment:make")).error
    assert error is not None
    assert error.startswith("SystemExit: 2")
    assert "argued_environment: error: the following arguments are required: scene" in capfd.readouterr().err
    assert sys.argv[0] != "argued_environment"
