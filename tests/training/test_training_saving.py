"""Checkpoints from which a training resumes: damage is detected, and a failed save keeps the previous checkpoint."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from apt_bench.core.digests import DIGESTS
from apt_bench.core.errors import UserError
from apt_bench.models import checkpoint
from apt_bench.training import checkpoints
from apt_bench.training.progress import Progress, Report
from apt_bench.training.recipe import Recipe, load_recipe
from apt_bench.training.session import Session
from apt_bench.training.two_stage import run_recipe, stage_checkpoint


def recipe(config: Path, steps: int) -> Recipe:
    over = {"two_stage": False, "stage2": {"steps": steps}, "train": {"save_every": 2}}
    return load_recipe(str(config), over)


@pytest.fixture(scope="module")
def trained(config: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    out = tmp_path_factory.mktemp("trained")
    run_recipe(recipe(config, 2), Session(out, cache, Report(None)))
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def go_on(config: Path, cache: Path, out: Path, steps: int = 4, report: Report | None = None) -> Path:
    return run_recipe(recipe(config, steps), Session(out, cache, report or Report(None)))


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.safetensors",
        "config.json",
        "provenance.json",
        "training.json",
        DIGESTS,
    ],
)
def test_a_flipped_bit_is_noticed(config: Path, cache: Path, run: Path, name: str) -> None:
    path = stage_checkpoint(run, 2) / name
    content = bytearray(path.read_bytes())
    rng = random.Random(name)
    at = rng.randrange(len(content) // 4, len(content) - 2)
    content[at] ^= 1 << rng.randrange(7)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be resumed: .*Copy it again.*or delete it"):
        go_on(config, cache, run)
    assert path.read_bytes() == content  # nothing was deleted


def test_a_file_that_is_gone_is_noticed(config: Path, cache: Path, run: Path) -> None:
    (stage_checkpoint(run, 2) / "optimizer.safetensors").unlink()
    with pytest.raises(UserError, match=r"optimizer.safetensors is missing or damaged"):
        go_on(config, cache, run)


class Listening(Report):
    def __init__(self) -> None:
        super().__init__(None)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_checkpoint_of_an_older_version_goes_on_with_a_note(config: Path, cache: Path, run: Path) -> None:
    (stage_checkpoint(run, 2) / DIGESTS).unlink()
    report = Listening()
    go_on(config, cache, run, report=report)
    assert any("was saved by an older version without digests" in text for text in report.said)
    assert stage_checkpoint(run, 2).name == "step_0000004"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("training.json", {"step": None}, "it must be a whole number"),
        ("training.json", {"step": 3}, "it must hold the settings"),
        ("training.json", {"config": []}, "it must hold the settings"),
        ("config.json", {"expert": 3}, "expert: expected a mapping"),
        ("config.json", {"vlm": {"mode": "half"}}, "mode is 'half'"),
    ],
)
def test_strange_json_without_digests_is_named(
    config: Path, cache: Path, run: Path, name: str, change: dict[str, Any], says: str
) -> None:
    folder = stage_checkpoint(run, 2)
    (folder / DIGESTS).unlink()
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=says) as error:
        go_on(config, cache, run)
    assert name in str(error.value)


def test_moments_of_another_shape_are_named(config: Path, cache: Path, run: Path) -> None:
    folder = stage_checkpoint(run, 2)
    (folder / DIGESTS).unlink()
    tensors = load_file(folder / "optimizer.safetensors")
    name = next(k for k in tensors if k.startswith("exp_avg."))
    save_file({**tensors, name: tensors[name].flatten()[:-1]}, folder / "optimizer.safetensors")
    with pytest.raises(UserError, match=f"optimizer.safetensors: '{name}' is not"):
        go_on(config, cache, run)


WRITES = [(checkpoint, "save_file"), (checkpoint, "write_json"), (checkpoints, "save_file"),
          (checkpoints, "write_json"), (checkpoints, "write_digests"), (checkpoints, "_flush")]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), WRITES)
def test_a_disk_that_is_full_at_any_write_costs_no_checkpoint(
    config: Path, cache: Path, run: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    before = {p.name: p.read_bytes() for p in stage_checkpoint(run, 2).iterdir()}

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(
            UserError, match=r"step 4 could not be saved.*No space left.*step_0000002 is intact"
        ):
            go_on(config, cache, run)
    folder = stage_checkpoint(run, 2)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    go_on(config, cache, run)
    assert stage_checkpoint(run, 2).name == "step_0000004"


def _killed_at(recipe: Recipe, session: Session, name: str, number: int) -> None:
    """Runs until call `number` of `os.NAME` after training began, and dies there without cleaning up."""
    real, calls = getattr(os, name), 0

    def dying(*args: Any, **options: Any) -> Any:
        nonlocal calls
        if "step_" in str(args[0]) or str(args[0]) == "training.json":
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    setattr(os, name, dying)
    run_recipe(recipe, session)


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("replace", 1),
        ("rename", 1),
        ("replace", 3),
        ("replace", 5),
        ("rmdir", 1),
        ("unlink", 1),
        ("mkdir", 1),
    ],
)
def test_a_kill_between_any_two_steps_of_saving_costs_at_most_that_save(
    config: Path, cache: Path, run: Path, call: str, number: int
) -> None:
    args = (recipe(config, 4), Session(run, cache, Report(None)), call, number)
    process = get_context("fork").Process(target=_killed_at, args=args)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert stage_checkpoint(run, 2).name in ("step_0000002", "step_0000004")
    go_on(config, cache, run)
    assert [p.name for p in (run / "stage2" / "checkpoints").iterdir()] == ["step_0000004"]
    checkpoint.load(run / "policy")


class Vanishing(Report):
    """Moves the run's folder away within the stage."""

    def __init__(self, out: Path) -> None:
        super().__init__(None)
        self.out = out

    @contextmanager
    def bar(self, what: str, total: int, start: int = 0) -> Iterator[Progress]:
        with super().bar(what, total, start) as progress:
            self.out.rename(self.out.with_name("away"))
            yield progress


def test_a_folder_that_vanishes_is_told_and_not_made_anew(config: Path, cache: Path, run: Path) -> None:
    with pytest.raises(UserError, match=r"step 4 could not be saved.*No such file or directory"):
        go_on(config, cache, run, report=Vanishing(run))
    assert not run.exists()
    run.with_name("away").rename(run)
    go_on(config, cache, run)
    assert stage_checkpoint(run, 2).name == "step_0000004"


def test_checkpoints_that_cannot_be_looked_up_do_not_begin_a_training_anew(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    (tmp_path / "checkpoints").write_text("no folder")
    with pytest.raises(UserError, match="Cannot list the checkpoints"):
        checkpoints.latest(tmp_path)


def test_what_only_looks_like_a_checkpoint_is_none(tmp_path: Path) -> None:
    for name in ("step_9", "step_10", "step_²", "step_0000011.part", "step_"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_99").write_text("a file")
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoints" / "step_10"


def test_a_checkpoint_between_two_renames_is_found_again(trained: Path, tmp_path: Path) -> None:
    """`checkpoint.save` over an existing one: the old one is renamed before the new one gets its name."""
    shutil.copytree(stage_checkpoint(trained, 2), tmp_path / "best.old")
    assert checkpoint.load(tmp_path / "best").expert.config.depth == 2
    assert (tmp_path / "best").is_dir()
