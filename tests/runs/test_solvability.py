"""`validate --solvable`: from the oracle's records to evidence and findings, and the whole command on a real suite."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from runs import record
from typer.testing import CliRunner

from apt_bench.cli import validate
from apt_bench.core.errors import UserError
from apt_bench.runs import solvability
from apt_bench.runs.records import EpisodeRecord, RunStore
from apt_bench.suites import EpisodeSpec, iter_suites, load_suite

CELL, TASK = "long_task", "KITCHEN_SCENE8_put_both_moka_pots_on_the_stove"


def specs() -> list[EpisodeSpec]:
    return load_suite("libero_pro").select([CELL], [TASK], episodes=4)


def played(init: int, success: bool, *at_start: bool) -> EpisodeRecord:
    goal = {
        f"on(thing_{k}, stove)": {"start": held, "first": None, "last": success}
        for k, held in enumerate(at_start)
    }
    return record(CELL, TASK, init, success, events={"goal": goal})


def test_evidence_counts_what_happened_and_what_was_so_before() -> None:
    lost = record(CELL, TASK, 3, False, outcome="error", failure=None)
    records = [
        played(0, True, False, True),
        played(1, False, False, True),
        played(2, False, False, False),
        lost,
    ]
    (e,) = solvability.gather(specs(), records, {(CELL, TASK): {"wrong_goal": {"y": 0.24}}})
    assert (e.solved, e.episodes, e.missing, e.steps) == (1, 3, 1, 100)
    assert (e.start_solved, e.start_atoms) == (0, {"on(thing_1, stove)": 2})
    assert (e.failures, e.proof) == ({"no_grasp": 2}, {"wrong_goal": {"y": 0.24}})
    told = [(f.level, f.kind) for f in solvability.findings([e])]
    assert told == [("warn", "start"), ("warn", "wrong_goal"), ("warn", "solvable"), ("ok", "solvable")]


def test_never_solved_is_a_warning_and_solved_at_the_start_an_error() -> None:
    (never,) = solvability.gather(specs(), [played(i, False, False) for i in range(4)], {})
    assert [(f.level, f.message) for f in solvability.findings([never])] == [
        ("warn", "the oracle solves 0 of 4; no_grasp 4")
    ]
    (trivial,) = solvability.gather(specs(), [played(i, True, True, True) for i in range(4)], {})
    assert [f.level for f in solvability.findings([trivial])] == ["error", "ok"]


def test_evidence_file_is_merged_task_by_task(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "e.json"
    (old,) = solvability.gather(specs(), [played(0, False, False)], {})
    (new,) = solvability.gather(specs(), [played(0, True, False)], {})
    other = solvability.Evidence("x", "y", 1, 0, None, parts={"t1": 1}, part_steps=(5, None))
    solvability.write(path, "libero_pro", [old, other])
    solvability.write(path, "libero_pro", [new])
    assert solvability.read(path) == [new, other]
    path.write_text("[]")
    with pytest.raises(UserError, match="is not what"):
        solvability.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not what"),
        ("{}", "is not what"),
        ('{"tasks": 3}', "is not what"),
        ('{"tasks": [1]}', r"tasks\[0\]: expected a mapping, found int"),
        ('{"tasks": [{"cell": "a", "task": "b", "episodes": 1}]}', r"tasks\[0\]: key 'solved' is missing"),
        ('{"tasks": [{"cell": "a", "task": "b", "episodes": 1, "solved": 2}]}', "2 of 1 episodes are solved"),
        ('{"tasks": [{"cell": "a", "task": "b", "episodes": -1, "solved": 0}]}', "episodes is -1"),
        ('{"tasks": [{"cell": "a", "task": "b", "episodes": 1e400, "solved": 0}]}', "too large"),
        ('{"tasks": [{"cell": ["a"], "task": "b", "episodes": 1, "solved": 0}]}', "cell is"),
        (
            '{"tasks": [{"cell": "a", "task": "b", "episodes": 1, "solved": 0, "proof": {"x": 1}}]}',
            "proof: x",
        ),
        (
            '{"tasks": [{"cell": "a", "task": "b", "episodes": 1, "solved": 0, "parts": {"x": "y"}}]}',
            "parts: x",
        ),
        (
            '{"tasks": [{"cell": "a", "task": "b", "episodes": 1, "solved": 0, "part_steps": [1, "x"]}]}',
            "part_steps",
        ),
        (
            '{"tasks": [{"cell": "a", "task": "b", "episodes": 1, "solved": 0, "new": 0}]}',
            "unknown key 'new'",
        ),
    ],
)
def test_damaged_evidence_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        solvability.read(path)
    path.write_bytes(b'{"tasks": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8"):
        solvability.read(path)


def test_events_of_any_shape_are_no_evidence_and_no_crash() -> None:
    strange = [
        {"goal": ["x"]},
        {"goal": {"a": 3}},
        {"scores": {"t1": "x", "t2": 1}},
        {"part_steps": 3},
        {"scores": 1},
    ]
    records = [record(CELL, TASK, i % 4, True, events=e) for i, e in enumerate(strange)]
    for chosen in (records[:4], records[4:]):
        (e,) = solvability.gather(specs(), chosen, {})
        assert (e.solved, e.start_solved) == (len(chosen), 0)


def test_evidence_is_of_shipped_suites_alone() -> None:
    assert solvability.on_record("libero_pro")
    for name in ("../suites/libero_pro", "libero_pro\0", "", "/etc/passwd", "libero_manifest"):
        assert solvability.on_record(name) == {}


def test_what_ships_is_about_tasks_that_there_are() -> None:
    for suite in iter_suites():
        tasks = {t.name for c in suite.cells for t in suite.cell_tasks(c)}
        for cell, task in solvability.on_record(suite.name):
            assert suite.cell(cell)
            assert task in tasks


def test_the_command_plays_resumes_and_writes(tmp_path: Path) -> None:
    app = typer.Typer()
    validate.register(app)
    words = [
        "--suite",
        "composite",
        "--solvable",
        "--cells",
        "train_plate",
        "--tasks",
        "red",
        "--episodes",
        "1",
    ]
    words += ["--workers", "0", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "e.json")]
    for _ in range(2):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert "the oracle solves 1 of 1" in done.output
    assert len(list(RunStore(tmp_path / "run").lines())) == 1
    (evidence,) = solvability.read(tmp_path / "e.json")
    assert (evidence.cell, evidence.task, evidence.score) == ("train_plate", "red_plate", "1/1")
    with pytest.raises(UserError, match="need --solvable"):
        CliRunner().invoke(app, ["--suite", "composite", "--episodes", "1"], catch_exceptions=False)
