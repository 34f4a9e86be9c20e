"""The per-task table: sentences and numbers that are true."""

from __future__ import annotations

from pathlib import Path

from runs import add, record, write_run

from apt_bench.analysis.run import load_run
from apt_bench.analysis.suite_labels import find_suite, task_numbers
from apt_bench.reporting import charts
from apt_bench.reporting.episode_tables import task_table
from apt_bench.suites import load_suite


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
    figure = charts.heat_map(run)
    assert figure
    (axis,) = figure.axes
    assert [t.get_text() for t in axis.get_xticklabels()] == [str(i) for i in range(8)]
    assert [(t.get_position()[0], t.get_text()) for t in axis.texts if t.get_position()[1] == 0.5] == [
        (2.5, "0"),
        (4.5, "0"),
        (7.5, "100"),
    ]


def test_tasks_of_a_suite_that_is_not_known_here_have_no_numbers(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {})
    add(path, *(record("x", t, 0, True, suite="mine") for t in ("b", "a")))
    table = task_table([load_run(path)])
    assert "number" not in [c.key for c in table.columns]
    assert [r.values["task"] for r in table.rows] == ["a", "b"]
    figure = charts.heat_map(load_run(path))
    assert figure
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == []


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
