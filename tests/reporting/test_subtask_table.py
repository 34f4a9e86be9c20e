"""The table by container: sub-groups of a cell apart, and the container to which lifted items were moved."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from runs import add, record, write_run

from apt_bench.analysis.frame import delivery
from apt_bench.analysis.run import load_run
from apt_bench.reporting.report import write_report, write_tables
from apt_bench.reporting.subtask_table import subtask_table
from apt_bench.reporting.table import Rate

SUITE = "rigid_pick_place"


def moved(container: str, to: str | None, lifted: bool = True, first: str = "apple") -> dict[str, Any]:
    """The events of an episode whose goal is the apple in `container`, and in which it was moved to `to`."""
    placed = {"object": "apple", "on": [to or "table"], "within": [to] if to else []}
    other = {"object": "duck", "on": ["bowl"], "within": ["bowl"]}
    return {
        "targets": ["apple", container],
        "touched": {first: 5},
        "grasped": {},
        "lifted": {"apple": 9} if lifted else {"duck": 9},
        "placements": [{**placed, "within": []}, placed, other],
        "goal": {f"on(apple, {container})": {"start": False, "first": None, "last": to == container}},
    }


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Of `uc`, four episodes for the plate and five for the mug; the policy favours the plate."""
    path = write_run(tmp_path / "run", lambda c, t, i: True, {}, protocol={"suite": SUITE})

    def episode(task: str, i: int, success: bool, events: dict[str, Any], **rest: Any) -> None:
        add(path, record("uc", task, i, success, suite=SUITE, events=events, **rest))

    for i in range(3):
        episode("to_plate", i, True, moved("plate", "plate"))
    episode("to_plate", 3, False, moved("plate", None, lifted=False, first="duck"))
    for i in range(2):
        episode("to_mug", i, False, moved("mug", "plate"))
    episode("to_mug", 2, False, moved("mug", None))
    ended = moved("mug", "mug") | {"placements": []}  # success ends the episode, before the item is at rest
    episode("to_mug", 3, True, ended)
    episode("to_mug", 4, False, moved("mug", "plate", lifted=False))  # pushed, so it is no delivery
    episode("to_mug", 5, False, {}, outcome="error", failure=None, error="lost")
    add(path, record("libero_goal", "to_mug", 0, True, events=moved("mug", "plate")))
    return path


def test_sub_groups_of_a_cell_are_apart(run_dir: Path) -> None:
    table = subtask_table([load_run(run_dir)], SUITE)
    assert table
    rows = {r.values["task"]: r.values for r in table.rows}
    assert list(rows) == ["to_plate", "to_mug"]  # the order of the suite
    counts = {
        task: {k: (v.k, v.n) for k, v in values.items() if isinstance(v, Rate)}
        for task, values in rows.items()
    }
    assert counts["to_plate"] == {
        "success": (3, 4), "right": (3, 4), "lifted": (3, 4), "named": (3, 3), "other": (0, 3),
    }  # fmt: skip
    assert counts["to_mug"] == {
        "success": (1, 5), "right": (5, 5), "lifted": (4, 5), "named": (1, 4), "other": (2, 4),
    }  # fmt: skip


def test_only_suites_whose_tasks_name_a_container_have_the_table(run_dir: Path) -> None:
    assert subtask_table([load_run(run_dir)], "libero_pro") is None
    assert subtask_table([], SUITE) is None


def test_a_report_has_the_table_on_its_page_and_as_a_file(run_dir: Path, tmp_path: Path) -> None:
    page = write_report([load_run(run_dir)], tmp_path / "out", browser=False).read_text()
    assert "to mug" in page[page.index("By container") :]
    with open(tmp_path / "out/tables/rigid_pick_place_containers.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert [r[2] for r in rows[1:]] == ["to_plate", "to_mug"]


def test_records_without_events_have_a_table_of_success_alone(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {}, protocol={"suite": SUITE})
    add(path, record("uc", "to_mug", 0, True, suite=SUITE))
    table = subtask_table([load_run(path)], SUITE)
    assert table
    found = {k: v.text() for k, v in table.rows[0].values.items() if isinstance(v, Rate)}
    assert found == {"success": "100", "right": "–", "lifted": "–", "named": "–", "other": "–"}
    write_tables([load_run(path)], tmp_path / "out")


@pytest.mark.parametrize(
    ("events", "lifted", "placed"),
    [
        ({"goal": {"on(a, b)": {}}, "lifted": {}}, False, ""),
        (
            {"goal": {"on(a, b)": {}}, "lifted": {"a": 1}, "placements": [{"object": "a", "within": ["b", "c"]}]},
            True,
            "b, c",
        ),
        ({"goal": {"on(a, b)": {}, "on(c, b)": {}}, "lifted": {"a": 1}}, None, None),
        ({"goal": {"turnon(stove)": {}}, "lifted": {"a": 1}}, None, None),
        ({"goal": {"on(a, b)": {}}, "lifted": 3}, None, None),
        ({"goal": {"on(a, b)": {}}, "lifted": {}, "placements": [7, {"object": "a", "within": "b"}]}, False, ""),
        ({"goal": 3}, None, None),
        ({}, None, None),
    ],
)  # fmt: skip
def test_delivery_of_any_events(events: dict[str, Any], lifted: bool | None, placed: str | None) -> None:
    assert delivery(events) == {"goal_object_lifted": lifted, "goal_object_placed": placed}
