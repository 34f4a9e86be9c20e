"""Coverage counts the requested episodes, and missing ones are named near the top."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from runs import add, record, write_run

from apt_bench.analysis.run import load_run
from apt_bench.reporting.coverage import coverage_table, error_table, missing
from apt_bench.reporting.report import Report, write_report
from apt_bench.reporting.run_tables import throughput_table


def ask(path: Path, **asked: Any) -> Path:
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**info, **asked}))
    return path


def rows(path: Path) -> list[tuple[Any, ...]]:
    table = coverage_table([load_run(path)])
    names = ("cell", "prompt", "requested", "finished", "coverage")
    return [
        tuple(v.text() if hasattr(v, "text") else v for v in (r.values[n] for n in names)) for r in table.rows
    ]


def unfinished(folder: Path) -> Path:
    """Goal Pos is done, Goal Task has not begun; of probe `null` one episode is done, of `swapped` none."""
    path = write_run(folder / "run", lambda c, t, i: True, {"goal_pos": 2}, tasks=2)
    add(path, record("goal_pos", "task_0", 0, True, prompt_id="null"))
    tasks = {"task_0": 2, "task_1": 2}
    null = {"goal_pos": tasks, "goal_task": tasks}
    return ask(path, requested=null, requested_probes={"null": null, "swapped": {"goal_pos": tasks}})


def test_coverage_counts_what_was_asked_probes_included(tmp_path: Path) -> None:
    assert rows(unfinished(tmp_path)) == [
        ("Goal Pos", "own", 4, 4, "100"),
        ("Goal Pos", "null", 4, 1, "25"),
        ("Goal Pos", "swapped", 4, 0, "0"),
        ("Goal Task", "own", 4, 0, "0"),
        ("Goal Task", "null", 4, 0, "0"),
    ]


def test_an_unfinished_run_says_so_before_any_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Report, "figure", lambda *_: None)  # seconds each, and not what this is about
    path = unfinished(tmp_path)
    said = missing([load_run(path)])
    assert said[0].startswith("apt is not finished: 15 of 20 requested episodes have not run, 11 of them")
    assert "apt: 4 of 4 episodes have no result (Goal Task 4 of 4). With them, its success rate" in " ".join(
        said
    )
    probes = "11 of 12 episodes under language probes have no result (null 7 of 8, swapped 4 of 4)."
    assert f"apt: {probes}" in said
    page = write_report([load_run(path)], tmp_path / "out").read_text()
    text = re.sub("<[^>]+>", "", page)  # without the links to the glossary
    assert "4 of 8 episodes · 1 of 12 episodes under language probes" in text
    assert page.index("is not finished") < page.index('id="results"')
    assert "is not finished" in (tmp_path / "out" / "tables" / "missing.csv").read_text()


def test_a_task_that_was_played_more_often_does_not_stand_for_one_that_was_not_played(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {"goal_pos": 4}, tasks=1)
    ask(path, requested={"goal_pos": {"task_0": 2, "task_1": 2}})
    (row,) = coverage_table([load_run(path)]).rows
    assert (row.values["requested"], row.values["finished"]) == (6, 4)


def test_a_run_that_does_not_say_which_probes_were_asked_counts_what_it_has(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {"goal_pos": 2}, tasks=1)
    add(path, record("goal_pos", "task_0", 0, True, prompt_id="null"))
    table = coverage_table([load_run(path)])
    assert [(r.values["prompt"], r.values["requested"]) for r in table.rows] == [("own", 2), ("null", 1)]
    assert not any("not finished" in s for s in missing([load_run(path)]))


def test_errors_are_missing_but_not_unfinished(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {}, tasks=1)
    lost = {"outcome": "error", "failure": None, "error": "gone"}
    add(path, record("goal_pos", "t", 0, True), record("goal_pos", "t", 0, False, prompt_id="null", **lost))
    ask(path, requested={"goal_pos": {"t": 1}}, requested_probes={"null": {"goal_pos": {"t": 1}}})
    said = missing([load_run(path)])
    assert not any("not finished" in s for s in said)
    assert any(
        "1 of 1 episodes under language probes have no result, 1 of them errors (null 1 of 1)" in s
        for s in said
    )
    assert error_table([load_run(path)]).rows[0].values["prompt"] == "null"


def test_each_cause_is_one_sentence_and_runs_share_it(tmp_path: Path) -> None:
    """Cells, probes, tasks and runs with the same limit do not repeat a sentence."""
    cells = {"goal_pos": 4, "goal_task": 4}
    paths = [write_run(tmp_path / n, lambda c, t, i: True, {"goal_pos": 1}, tasks=2) for n in "ab"]
    for path in paths:
        why = dict.fromkeys(("task_8", "task_9"), "it needs a scene that is not installed")
        ask(path, requested={c: dict.fromkeys(("task_0", "task_1"), n) for c, n in cells.items()},
            unavailable={"goal_pos": why})  # fmt: skip
        add(
            path,
            *(record("goal_pos", t, i, True, start_hash=t) for t in ("task_0", "task_1") for i in (0, 1)),
        )
    said = missing([load_run(p, p.name) for p in paths])
    assert [s.partition(":")[0] for s in said[:2]] == ["a is not finished", "b is not finished"]
    assert said[2] == (
        "a and b: 12 of 16 episodes have no result (Goal Pos 4 of 8, Goal Task 8 of 8). The table of coverage shows "
        "how much they could change each success rate."
    )
    assert said[3].startswith(
        "a and b: 2 tasks cannot be run: it needs a scene that is not installed (Goal Pos 't"
    )
    assert said[-1].startswith(
        "a and b: 2 tasks have equal initial states among their own. Different ones: Goal P"
    )
    assert len(said) == 7


def test_time_counts_the_episodes_under_probes_too(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {"goal_pos": 2}, tasks=1)
    add(path, *(record("goal_pos", "task_0", i, True, prompt_id="null") for i in range(2)))
    values = throughput_table([load_run(path)]).rows[0].values  # a wall clock of one minute
    assert (values["episodes"], values["per_minute"]) == (4, "4.0")
