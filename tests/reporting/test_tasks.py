"""What reports take from suites: sentences, task numbers, labels; shipped suites and others."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import pytest
from runs import add, record, write_run

from apt_bench.analysis.cell_summary import cell_summaries
from apt_bench.analysis.compare import compare
from apt_bench.analysis.run import load_run
from apt_bench.analysis.suite_labels import _installed_suite, find_suite, task_numbers
from apt_bench.core.errors import UserError
from apt_bench.core.plugins import Plugin
from apt_bench.reporting import charts
from apt_bench.reporting.comparisons import comparison_tables
from apt_bench.reporting.coverage import error_table
from apt_bench.reporting.episode_tables import task_table
from apt_bench.reporting.headline_tables import suite_tables
from apt_bench.reporting.report import write_tables
from apt_bench.reporting.table import NUMBERS
from apt_bench.reporting.table_files import markdown
from apt_bench.suites import Suite, load_suite, register_suite, registry
from tests.clock import in_time


def test_a_task_shows_its_most_frequent_failure_and_the_steps_of_its_successes(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {})
    ends = {
        "mixed": [(True, None, 50), (True, None, 71), (False, "dropped", 9), *[(False, "no_grasp", 9)] * 2],
        "failed": [(False, "no_contact", 9), (False, "dropped", 9)],  # the first by name of two as frequent ones
        "solved": [(True, None, 30)],
    }  # fmt: skip
    for task, episodes in ends.items():
        for i, (won, failure, steps) in enumerate(episodes):
            add(path, record("goal_pos", task, i, won, failure=failure, steps=steps))
    add(path, record("goal_pos", "lost", 0, False, outcome="error", failure=None))
    shown = {
        r.values["task"]: [r.values[k] for k in ("n", "steps", "failure")]
        for r in task_table([load_run(path)]).rows
    }
    assert shown == {
        "mixed": [5, "60", "no_grasp (2)"],
        "failed": [2, "", "dropped (1)"],
        "solved": [1, "30", ""],
    }


def test_thousands_of_tasks_take_seconds(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: i > 0, {"goal_pos": 2}, tasks=3000)
    start = time.process_time()
    write_tables([load_run(path)], tmp_path / "out")
    assert in_time(time.process_time() - start, 4)


def test_a_task_whose_initial_states_have_their_own_sentences_shows_how_many(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {}, protocol={"suite": "rigid_pick_place"})
    sentences = [
        "Move the apple to the plate.",
        "Move the duck to the plate.",
        "Move the apple to the plate.",
    ]
    for i, prompt in enumerate(sentences):
        add(path, record("so", "to_plate", i, True, suite="rigid_pick_place", prompt=prompt))
    add(path, record("so", "to_bowl", 0, True, suite="rigid_pick_place", prompt="Move it."))
    rows = task_table([load_run(path)]).rows
    assert {r.values["task"]: r.values["instruction"] for r in rows} == {
        "to_plate": "2 sentences, e.g. “Move the apple to the plate.”",
        "to_bowl": "Move it.",
    }


def test_tasks_are_numbered_as_ls_tasks_does(tmp_path: Path) -> None:
    suite = load_suite("libero_pro")
    cell = suite.cell("goal_task")
    names = [t.name for t in suite.cell_tasks(cell)]
    assert names != sorted(names)
    path = write_run(tmp_path / "run", lambda c, t, i: True, {})
    for cell_name in ("goal_task", "goal_task@stale"):
        add(path, *(record(cell_name, names[i], 0, i == 7) for i in (7, 2, 4)))
    run = load_run(path)
    rows = [r.values for r in task_table([run]).rows if r.values["cell"] == cell.label]
    assert [(v["number"], v["task"]) for v in rows] == [(i, names[i]) for i in (2, 4, 7)]
    figure = charts.heat_map([run])
    assert figure
    axis, _ = figure.axes
    labels = [t.get_text().replace("\n", " ") for t in axis.get_yticklabels()]
    assert [label[:12] for label in labels] == [f"{i} {names[i].replace('_', ' ')}"[:12] for i in (2, 4, 7)]
    assert [(t.get_position()[1], t.get_text()) for t in axis.texts] == [(0.5, "0"), (1.5, "0"), (2.5, "100")]


def test_errors_and_comparisons_have_the_same_numbers(tmp_path: Path) -> None:
    suite = load_suite("libero_pro")
    names = [t.name for t in suite.cell_tasks(suite.cell("goal_task"))]
    runs = []
    for name in ("a", "b"):
        path = write_run(tmp_path / name, lambda c, t, i: True, {})
        add(path, *(record("goal_task", names[i], 0, True) for i in (7, 2)))
        lost = {"outcome": "error", "failure": None, "error": "lost"}
        add(path, record("goal_task", names[4], 0, False, **lost), record("other", "x", 0, False, **lost))
        runs.append(load_run(path, name))
    assert [(r.values["number"], r.values["task"]) for r in error_table(runs[:1]).rows] == [
        (4, names[4]),
        ("", "x"),
    ]
    table = comparison_tables(compare(*runs), "a", "b")[1]
    assert table.columns[0].label == "#"
    found = {str(r.values["cell"]).partition(": ")[2]: r.values["number"] for r in table.rows}
    assert found == {names[7]: 7, names[2]: 2}
    assert names[7].replace("_", " ") in markdown(table)
    assert NUMBERS in table.notes


def test_tasks_of_a_suite_that_is_not_known_here_have_no_numbers(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {})
    add(path, *(record("x", t, 0, True, suite="mine") for t in ("b", "a")))
    lost = {"outcome": "error", "failure": None, "error": "lost"}
    add(path, record("x", "c", 0, False, suite="mine", **lost))
    run = load_run(path)
    for table in (error_table([run]), comparison_tables(compare(run, run), "a", "b")[1], task_table([run])):
        assert "number" not in [c.key for c in table.columns]
    assert [r.values["task"] for r in table.rows] == ["a", "b"]
    figure = charts.heat_map([load_run(path)])
    assert figure
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_a_run_cannot_name_a_suite_file_that_its_reader_would_open(tmp_path: Path) -> None:
    evil = tmp_path / "evil.yaml"
    shipped = Path("suites/rigid_pick_place.yaml").read_text()
    evil.write_text(shipped.replace("name: rigid_pick_place", "name: evil"))
    assert load_suite(str(evil))
    for name in (str(evil), "../suites/rigid_pick_place", "rigid_pick_place\0", "", "/etc/passwd"):
        assert find_suite(name) is None
        assert task_numbers(name, "so") == {}
        path = write_run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", lambda c, t, i: True, {})
        add(path, record("so", "t", 0, True, suite=name))
        assert len(task_table([load_run(path)]).rows) == 1


@pytest.fixture
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    _installed_suite.cache_clear()


def mine(label: str) -> Suite:
    shipped = load_suite("rigid_pick_place")
    cells = tuple(dataclasses.replace(c, label=f"{label} {c.name}") for c in shipped.cells)
    return dataclasses.replace(shipped, name="mine", title=label, cells=cells)


@pytest.mark.usefixtures("nothing_registered")
def test_a_report_names_cells_as_a_suite_that_this_process_registered(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {})
    add(path, record("uo", "t", 0, True, suite="mine"), record("so", "t", 0, True, suite="mine"))
    run = load_run(path)
    assert list(cell_summaries(run)) == [("mine", "so"), ("mine", "uo")]  # unknown: by name
    assert {s.label for s in cell_summaries(run).values()} == {"SO", "UO"}
    register_suite(mine("First"))
    assert {s.label for s in cell_summaries(run).values()} == {"First so", "First uo"}
    register_suite(mine("Second"))  # the same name again replaces it
    assert {s.label for s in cell_summaries(run).values()} == {"Second so", "Second uo"}
    assert suite_tables([run], "mine")[0].title == "Second"
    assert task_numbers("mine", "so")


@pytest.mark.usefixtures("nothing_registered")
@pytest.mark.parametrize(
    "code", ["suite = None", "raise ValueError('broken')", "raise SystemExit(3)", "import absent"]
)
def test_a_package_whose_suite_cannot_be_loaded_breaks_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "broken_suites.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_suites", raising=False)
    added = {"theirs": Plugin("broken_suites:suite", "broken-suites")}
    monkeypatch.setattr(registry, "find_plugins", lambda group: added if group == "apt_bench.suites" else {})
    with pytest.raises(UserError, match="broken-suites"):
        load_suite("theirs")
    path = write_run(tmp_path / "run", lambda c, t, i: True, {})
    add(path, record("x", "t", 0, True, suite="theirs"))
    write_tables([load_run(path)], tmp_path / "out")
    assert "theirs" in (tmp_path / "out" / "tables" / "theirs.md").read_text()


@pytest.mark.usefixtures("nothing_registered")
def test_a_report_uses_the_suite_of_a_package_whatever_its_parts_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import dataclasses; from apt_bench.suites import load_suite\n"
        "suite = dataclasses.replace(load_suite('rigid_pick_place'), name='theirs', title='Theirs', "
        "tasks='their_suites:tasks', published='nothing_that_ships.csv')\n"
        "def tasks(cell): raise RuntimeError('no tasks here')\n"
    )
    (tmp_path / "their_suites.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_suites", raising=False)
    added = {"theirs": Plugin("their_suites:suite", "their-suites")}
    monkeypatch.setattr(registry, "find_plugins", lambda group: added if group == "apt_bench.suites" else {})
    path = write_run(tmp_path / "run", lambda c, t, i: True, {})
    add(path, record("so", "t", 0, True, suite="theirs"))
    run = load_run(path)
    write_tables([run], tmp_path / "out")
    assert (tmp_path / "out" / "tables" / "theirs.md").read_text().startswith("**Theirs**")
    assert "number" not in [c.key for c in task_table([run]).columns]
