"""LIBERO's tasks, sentences and goals without a simulator."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from apt_bench.core.errors import UserError
from apt_bench.envs.base import Atom
from apt_bench.envs.libero import cell_tasks, validation
from apt_bench.envs.libero import tasks as libero_tasks
from apt_bench.envs.libero.bddl import parse_bddl, read_bddl
from apt_bench.suites import Cell, load_suite


def cell(benchmark: str, instruction: str = "bddl") -> Cell:
    return Cell("c", "C", 220, instruction, args={"benchmark": benchmark})


def test_all_forty_task_sentences_differ_from_the_file_name() -> None:
    findings = list(validation.checks(load_suite("libero_pro")))
    assert [f for f in findings if f.level == "error"] == []
    assert "40 of 40 _task prompts differ from LIBERO's task.language" in [f.message for f in findings]
    assert sum(f.kind == "unavailable" for f in findings) == 4
    flagged = {(f.cell, f.kind) for f in findings if f.message.startswith("known defect")}
    assert {("long_task", "wrong_goal"), ("goal_task", "degenerate"), ("long_pos", "opens_away")} <= flagged


def test_task_order_and_sentences_are_liberos() -> None:
    tasks = cell_tasks(cell("libero_10_task"))
    assert len(tasks) == 10
    assert tasks[2].prompts == {
        "file": "turn on the stove and put the moka pot on it",
        "bddl": "turn on the stove and put the pan on it",
    }
    assert tasks[8].flags == {None: ("wrong_goal",)}
    assert {t.inits for t in tasks} == {50}


def test_scene_number_never_stays_in_the_sentence() -> None:
    assert libero_tasks.sentence_in_name("KITCHEN_SCENE10_close_the_top_drawer") == "close the top drawer"
    assert libero_tasks.sentence_in_name("open_the_door") == "open the door"


def test_base_goal_is_the_unperturbed_goal() -> None:
    task = cell_tasks(cell("libero_spatial_task"))[0]
    assert libero_tasks.base_goal(task.args) == (Atom("on", ("akita_black_bowl_1", "plate_1")),)
    assert read_bddl(libero_tasks.bddl_path("libero_spatial_task", task.name)).goal == (
        Atom("on", ("akita_black_bowl_2", "plate_1")),
    )
    assert libero_tasks.base_goal(cell_tasks(cell("libero_spatial"))[0].args) == ()


def test_withheld_benchmarks_are_unavailable_not_absent() -> None:
    tasks = cell_tasks(cell("libero_goal_env"))
    assert len(tasks) == 10
    assert all(t.unavailable for t in tasks)
    with pytest.raises(UserError, match="libero_goal_env"):
        cell_tasks(cell("libero_goal_envs"))


def test_bddl_reader_agrees_with_liberos_words() -> None:
    problem = parse_bddl(
        "(define (problem P) (:language Pick the A ; a comment\n and B) (:objects a b - cup c - plate)"
        " (:init (On a r) (Open d)) (:goal (And (On a c) (Turnon s))))"
    )
    assert problem.language == "pick the a and b"
    assert problem.objects == {"a": "cup", "b": "cup", "c": "plate"}
    assert problem.init == (Atom("on", ("a", "r")), Atom("open", ("d",)))
    assert problem.goal == (Atom("on", ("a", "c")), Atom("turnon", ("s",)))
    with pytest.raises(ValueError, match="parenthes"):
        parse_bddl("(define (problem P) (:goal (And (On a c)))")


def test_changed_files_and_versions_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_suite("libero")
    changed = json.loads(json.dumps(libero_tasks.manifest()))
    changed["benchmarks"]["libero_goal"]["tasks"][3]["init_sha256"] = "0" * 64
    for module in (libero_tasks, validation):
        monkeypatch.setattr(module, "manifest", lambda: changed)
    other = dataclasses.replace(suite, simulator={"mujoco": "3.3.2", "robosuite": "1.4.0"})
    errors = [f for f in validation.checks(other) if f.level == "error"]
    assert [(f.kind, f.cell) for f in errors] == [("version", ""), ("file", "goal")]
    assert "open_the_top_drawer_and_put_the_bowl_inside" in errors[1].message
    assert "3.3.2" in errors[0].message


def test_prompt_check_finds_wrong_sentences() -> None:
    """A cell that sends the file name's sentence for another goal, and a sentence with remains of a file name."""
    task = cell_tasks(cell("libero_goal_task"))[1]
    found = list(validation._prompt(cell("libero_goal_task", "file"), task))
    assert [f.level for f in found] == ["error"]
    dirty = dataclasses.replace(task, prompts={**task.prompts, "bddl": "put_the plate on stove 2"})
    assert {f.level for f in validation._prompt(cell("libero_goal_task"), dirty)} == {"error", "warn"}
