"""Rerunning a command: what it determines without the policy, names of directories, and runs that must stay apart."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from apt_bench.core.errors import UserError
from apt_bench.rollout import runner
from apt_bench.rollout.plan import dry_plan
from apt_bench.rollout.runner import RunOptions
from apt_bench.runs.records import RunStore
from tests.rollout.commands import ROOT, SUITE, records, results
from tests.rollout.loads import loads

HERE = "tests.rollout.loads:"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    return path


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def session(*arguments: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(runner, "ray_session", session)


@pytest.mark.parametrize("kind", ["Declared", "Late", "Hashed"])
def test_a_finished_run_given_again_loads_nothing_and_writes_nothing(kind, here, tmp_path, weights, no_ray):
    log, out = tmp_path / "log", tmp_path / "run"
    args = (f"log={log}", *([f"weights={weights}"] if kind != "Declared" else []))
    first = here(HERE + kind, cells=("push",), episodes=2, policy_args=args)
    assert loads(log) == 1
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}
    for workers in ("0", "auto"):
        options = RunOptions.of(
            suite=SUITE,
            policy=HERE + kind,
            policy_args=args,
            cells=("push",),
            episodes=2,
            out=out,
            workers=workers,
        )
        with open(os.devnull, "w") as nowhere:
            again = runner.run(options, runner.Console(file=nowhere))
        assert [r.key for r in again.records] == [r.key for r in first.records]
        assert (again.exit_code, again.missing) == (0, ())
    assert loads(log) == 1
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()} == before
    assert len(here(HERE + kind, cells=("push",), episodes=3, policy_args=args).records) == 6
    assert loads(log) == 2  # something was left


@pytest.mark.parametrize("kind", ["Late", "Hashed"])
def test_other_weights_at_the_same_place_are_never_taken_for_the_finished_ones(kind, here, tmp_path, weights):
    args = (f"log={tmp_path / 'log'}", f"weights={weights}")
    here(HERE + kind, cells=("push",), episodes=1, policy_args=args)
    weights.write_bytes(b"two")
    with pytest.raises(UserError, match=r"another policy \(weights_sha256"):
        here(HERE + kind, cells=("push",), episodes=1, policy_args=args)


def test_a_class_that_now_declares_something_else_is_loaded(here, tmp_path, monkeypatch):
    from tests.rollout.loads import Declared

    log = tmp_path / "log"
    here(HERE + "Declared", cells=("push",), episodes=1, policy_args=(f"log={log}",))
    monkeypatch.setattr(Declared, "spec", dataclasses.replace(Declared.spec, execute=2))
    with pytest.raises(UserError, match=r"another protocol \(execute: 3 there, 2 now"):
        here(HERE + "Declared", cells=("push",), episodes=1, policy_args=(f"log={log}",))
    assert loads(log) == 2


def test_a_dry_run_loads_nothing_and_says_what_only_the_loaded_policy_knows(here, tmp_path, weights, no_ray):
    log = tmp_path / "log"
    args = (f"log={log}", f"weights={weights}")
    plan = dry_plan(
        RunOptions.of(suite=SUITE, policy=HERE + "Late", policy_args=args, cells=("push",), episodes=2)
    )
    assert (loads(log), len(plan.todo)) == (0, 4)
    assert "its cameras" in plan.unknown
    assert "directory" in plan.unknown
    assert not dry_plan(RunOptions.of(suite=SUITE, policy="zero")).unknown
    here(HERE + "Late", cells=("push",), episodes=1, policy_args=args)
    out = tmp_path / "run"
    plan = dry_plan(
        RunOptions.of(
            suite=SUITE, policy=HERE + "Late", policy_args=args, cells=("push",), episodes=2, out=out
        )
    )
    assert (loads(log), len(plan.todo), plan.unknown, plan.execute) == (1, 2, "", 3)
    with pytest.raises(UserError, match="missing a required argument"):
        dry_plan(RunOptions.of(suite=SUITE, policy=HERE + "Late", policy_args=("odd=1",)))


YAML = "policy: tests.toy:PushPolicy\nargs: {noise: 0.1}\n"


def test_people_see_the_name_that_they_typed(here, tmp_path, monkeypatch):
    (tmp_path / "steady.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / SUITE, tmp_path / "toy.yaml")
    with open(os.devnull, "w") as nowhere:
        options = RunOptions.of(
            suite="toy.yaml", policy="steady.yaml", cells=("push",), episodes=1, workers="0"
        )
        done = runner.run(options, runner.Console(file=nowhere))
    assert {r.policy for r in done.records} == {"steady"}
    assert RunStore(done.out).run()["policy"]["name"] == "steady"
    assert done.out.name.startswith("toy-steady-")


def test_a_run_of_an_older_version_goes_on_under_its_old_name(tmp_path, monkeypatch):
    """An older version wrote the class's name into run.json, into the records and into the default directory's name."""
    (tmp_path / "steady.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / SUITE, tmp_path / "toy.yaml")
    options = RunOptions.of(suite="toy.yaml", policy="steady.yaml", cells=("push",), episodes=1, workers="0")
    with open(os.devnull, "w") as nowhere:
        out = runner.run(options, runner.Console(file=nowhere)).out
        old = out.with_name(out.name.replace("steady", "push"))
        out.rename(old)
        run = json.loads((old / "run.json").read_text())
        run["policy"]["name"] = "push"
        del run["requested_probes"]
        (old / "run.json").write_text(json.dumps(run))
        again = runner.run(options.replace(episodes=2), runner.Console(file=nowhere))
    assert again.out == old
    assert len(again.records) == len(records(old)) == 4
    assert not out.exists()


def test_a_slash_in_a_policys_name_makes_no_folders(here, tmp_path, monkeypatch):
    (tmp_path / "odd.yaml").write_text(YAML + "name: ../my/policy\n")
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / SUITE, tmp_path / "toy.yaml")
    options = RunOptions.of(suite="toy.yaml", policy="odd.yaml", cells=("push",), episodes=1, workers="0")
    with open(os.devnull, "w") as nowhere:
        done = runner.run(options, runner.Console(file=nowhere))
    assert done.out.parent == Path("results/runs")
    assert done.out.is_dir()


def test_what_was_asked_is_on_record_before_anything_runs_probes_included(here, tmp_path, monkeypatch):
    def nothing(*arguments: object) -> list[object]:
        asked = RunStore.open(tmp_path / "run").run()
        assert asked["requested"] == {"push": {"push_the_puck_left": 2, "push_the_puck_right": 2}}
        assert asked["requested_probes"]["null"] == asked["requested"]
        return (job for job in ())  # type: ignore[return-value]

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_local", nothing)
        done = here(cells=("push",), episodes=2, probes=("null",))
    assert done.exit_code == 1
    here(cells=("slide",), tasks=("left",), episodes=1)  # adds to it, although nothing was recorded
    run = RunStore.open(tmp_path / "run").run()
    assert run["requested"]["slide"] == {"push_the_puck_left": 1}
    assert run["requested"]["push"] == {"push_the_puck_left": 2, "push_the_puck_right": 2}
    assert run["requested_probes"]["null"]["push"] == run["requested"]["push"]


def test_what_is_named_twice_runs_once(here):
    twice = {"cells": ("push", "push"), "tasks": ("0", "left", "0"), "probes": ("null", "null")}
    done = here("tests.toy:HostedPushPolicy", episodes=2, **twice)
    once = here("tests.toy:HostedPushPolicy", episodes=2, cells=("push",), tasks=("left",), probes=("null",))
    assert [r.key for r in done.records] == [r.key for r in once.records]
    assert {r.key.task for r in done.records} == {"push_the_puck_left"}
    assert len(results(done.out)) == len(records(done.out)) == len(done.records)


def test_the_selection_rule_is_recorded_kept_and_changed_after_the_end(here, tmp_path):
    def recorded() -> object:
        return RunStore(tmp_path / "run").run().get("selection_rule")

    here(cells=("push",), episodes=1)
    assert recorded() is None
    here(cells=("push",), episodes=2, selection_rule="last step")
    here(cells=("push",), episodes=3)
    assert recorded() == "last step"
    here(cells=("push",), episodes=3, selection_rule="best of 3")  # nothing is left to run
    assert recorded() == "best of 3"
    assert RunStore(tmp_path / "run").run()["requested"]


def test_half_written_files_of_a_kill_are_swept(here, tmp_path):
    here(cells=("push",), episodes=1, save_actions=True)
    out = tmp_path / "run"
    for name in ("run.json.part", "actions/push/x.npz.part", "videos/push/y.mp4.part", "report/z.part"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    here(cells=("push",), episodes=2, save_actions=True)
    assert [str(p.relative_to(out)) for p in out.rglob("*.part")] == ["report/z.part"]  # another verb's
