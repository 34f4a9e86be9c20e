"""The run directory vanishes, is replaced, or cannot be written: a message, no data lost, the same command resumes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apt_bench.core.errors import UserError
from apt_bench.rollout import runner
from apt_bench.runs.records import RunStore
from tests.rollout.commands import results

CUT = 3


@pytest.fixture
def after_three(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Do something to the run directory when three episodes are recorded and the fourth has run."""

    def order(what: Callable[[], object]) -> None:
        real = runner.run_local

        def stream(*arguments):
            for number, job in enumerate(real(*arguments), 1):
                if number == CUT + 1:
                    monkeypatch.setattr(runner, "run_local", real)
                    what()
                yield job

        monkeypatch.setattr(runner, "run_local", stream)

    return order


def gone(out: Path, safe: Path) -> Callable[[], None]:
    shutil.move(out, safe)
    return lambda: shutil.move(safe, out)


def unmounted(out: Path, safe: Path) -> Callable[[], None]:
    shutil.move(out, safe)
    out.mkdir()

    def back() -> None:
        out.rmdir()  # fails where anything was written into it
        shutil.move(safe, out)

    return back


def a_file_instead(out: Path, safe: Path) -> Callable[[], None]:
    shutil.move(out, safe)
    out.touch()

    def back() -> None:
        out.unlink()
        shutil.move(safe, out)

    return back


def episodes_are_a_folder(out: Path, safe: Path) -> Callable[[], None]:
    (out / "episodes.jsonl").rename(safe)
    (out / "episodes.jsonl").mkdir()

    def back() -> None:
        (out / "episodes.jsonl").rmdir()
        safe.rename(out / "episodes.jsonl")

    return back


@pytest.mark.parametrize("fault", [gone, unmounted, a_file_instead, episodes_are_a_folder])
@pytest.mark.parametrize("extras", [{}, {"save_actions": True, "video": "all"}], ids=["plain", "films"])
def test_a_directory_that_is_lost_stops_the_run_and_the_same_command_resumes(
    fault, extras, here, after_three, tmp_path
):
    out, back = tmp_path / "run", []
    after_three(lambda: back.append(fault(out, tmp_path / "safe")))
    asked = {"cells": ("push",), "episodes": 4, **extras}
    stopped = here(**asked)
    assert (stopped.stopped, stopped.exit_code, len(stopped.finished)) == ("disk", 1, CUT)
    assert "Cannot write the run directory" in stopped.advice
    assert "rerun the same command to resume" in stopped.advice.lower()
    assert ("Solve the problem" in stopped.advice) == (fault is episodes_are_a_folder)
    back[0]()
    assert len(results(out)) == CUT
    assert here(**asked).exit_code == 0
    here(out=tmp_path / "other", **asked)
    assert results(out) == results(tmp_path / "other")


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EACCES, errno.ESTALE])
def test_any_error_of_the_device_is_a_message(number, here, after_three, tmp_path, monkeypatch):
    def broken(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    def put(self: RunStore, *arguments: object) -> None:
        broken()

    asked = {"cells": ("push",), "episodes": 4, "save_actions": True}
    with monkeypatch.context() as patch:
        after_three(lambda: (patch.setattr(RunStore, "put", put), patch.setattr(os, "fsync", broken)))
        stopped = here(**asked)
    assert (stopped.stopped, stopped.exit_code) == ("disk", 1)
    assert os.strerror(number) in stopped.advice
    assert f"{CUT} episodes are recorded in {tmp_path / 'run'}" in stopped.advice
    assert here(**asked).exit_code == 0
    assert len(results(tmp_path / "run")) == 8


def test_an_error_that_is_not_the_directorys_is_not_blamed_on_it(here, after_three, tmp_path):
    def elsewhere() -> None:
        raise ConnectionResetError("somebody else's socket")

    after_three(elsewhere)
    with pytest.raises(ConnectionResetError):
        here(cells=("push",), episodes=4)
    assert len(results(tmp_path / "run")) == CUT


def test_a_directory_that_cannot_be_begun_is_a_message(here, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot write to .*file"):
        here(cells=("push",), episodes=1, out=tmp_path / "file")

    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr("apt_bench.runs.records.write_json", read_only)
        with pytest.raises(UserError, match=r"Cannot write the run directory .*Read-only file system"):
            here(cells=("push",), episodes=1)
    assert here(cells=("push",), episodes=1).exit_code == 0
