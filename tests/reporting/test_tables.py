"""The tables: the paper's own, measured ones, and what happens when something is missing."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import pytest
from runs import PROTOCOL, add, make_run, record, write_run

from apt_bench.analysis.run import load_run
from apt_bench.reporting.control_table import control_table
from apt_bench.reporting.coverage import coverage_table, error_table, missing
from apt_bench.reporting.episode_tables import LANGUAGE, defect_table, language_table
from apt_bench.reporting.headline_tables import (
    composite_table,
    paper_tables,
    real_table,
    reported_average,
    suite_tables,
)
from apt_bench.reporting.probe_table import probe_table
from apt_bench.reporting.published import published
from apt_bench.reporting.report import Report
from apt_bench.reporting.table import Column, Rate, Row, Table, html_table, percent
from apt_bench.reporting.table_files import csv_rows, latex, markdown, tex
from apt_bench.reporting.two_stage_gain import gain_table
from apt_bench.suites import load_suite

HEADLINE = [c.name for c in load_suite("libero_pro").cells if c.headline]
ALL = dict.fromkeys(HEADLINE, 2)


def cells(table: Table, row: int) -> dict[str, str]:
    values = table.rows[row].values
    return {k: v.text() if isinstance(v, Rate) else str(v) for k, v in values.items()}


def test_published_averages_are_the_means_of_their_cells() -> None:
    rows = {r.method: r for r in published("libero_pro.csv")}
    assert len(rows) == 7
    for method, row in rows.items():
        mean = reported_average(row, HEADLINE)
        if method == "CaP-X":  # no Long column, so no average either
            assert mean != mean
            assert row.text["avg"] == ""
        else:
            assert abs(mean - row.number("avg")) <= 0.5


def test_papers_tables() -> None:
    first, second, third, fourth = paper_tables()
    assert cells(first, 6)["avg"] == "27"
    assert (cells(first, 4)["long_pos"], cells(first, 4)["avg"]) == ("–", "–")
    assert [cells(second, 0)[k] for k in ("knowledge_insulation", "two_stage", "finetune_vlm")] == ["?"] * 3
    assert [cells(second, 5)[k] for k in ("knowledge_insulation", "two_stage", "uo")] == ["✗", "✓", "84"]
    assert "avg" not in [c.key for c in second.columns]
    assert cells(third, 1)["pick_place.total"] == "90/110"
    assert cells(third, 0)["clutter_pick_place.total"] == "43/80"
    assert [cells(fourth, 0)[f"chaining.{s}"] for s in ("t1", "t2", "t1_t2")] == ["–", "–", "0"]
    assert all(
        r.kind == "published" and str(r.values["method"]).endswith("†")
        for t in paper_tables()
        for r in t.rows
    )


def test_published_gain_of_the_second_stage() -> None:
    table = gain_table([], "rigid_pick_place", ("so", "uo", "uc", "uoue"))
    assert table
    assert [cells(table, 0)[c] for c in ("so", "uo", "uc", "uoue")] == ["+6.0", "+16", "+50", "+22"]
    assert [cells(table, 1)[c] for c in ("so", "uo", "uc", "uoue")] == ["+10", "+28", "+26", "+24"]


def test_measured_gain_needs_the_same_settings_and_episodes(tmp_path: Path) -> None:
    def policy(two_stage: bool, ki: bool = True) -> dict[str, object]:
        return {
            "architecture": "APT",
            "two_stage": two_stage,
            "knowledge_insulation": ki,
            "finetune_vlm": False,
        }

    two = make_run(tmp_path / "two", lambda c, t, i: i < 6, {"goal_pos": 10}, policy=policy(True))
    one = make_run(tmp_path / "one", lambda c, t, i: i < 4, {"goal_pos": 10}, policy=policy(False))
    other = make_run(tmp_path / "other", lambda c, t, i: i < 4, {"goal_pos": 10}, policy=policy(False, False))
    table = gain_table([one, two, other], "libero_pro", ["goal_pos"])
    assert table
    assert [r.values["method"] for r in table.rows] == ["APT, KI"]
    assert cells(table, 0)["goal_pos"] == "+20"


def test_headline_has_every_cell_and_a_macro_average(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", lambda c, t, i: c.endswith("task"), ALL)
    table = suite_tables([run], "libero_pro")[0]
    assert [c.key for c in table.columns] == ["method", *HEADLINE, "avg"]
    assert (cells(table, 0)["spatial_pos"], cells(table, 0)["spatial_task"], cells(table, 0)["avg"]) == (
        "0",
        "100",
        "50",
    )
    assert [g for g in table.groups if g[0]] == [("Spatial", 2), ("Object", 2), ("Goal", 2), ("Long", 2)]
    assert [r.kind for r in table.rows] == ["measured"] + ["published"] * 7
    assert all(
        not isinstance(v, Rate) or v.interval() == "" for r in table.rows[1:] for v in r.values.values()
    )


def test_no_average_over_what_is_missing(tmp_path: Path) -> None:
    full = write_run(tmp_path / "full", lambda c, t, i: True, ALL)
    lines = (full / "episodes.jsonl").read_text().splitlines(keepends=True)
    (full / "episodes.jsonl").write_text("".join(lines[:-1]))  # one of 20 episodes of the last cell
    run = load_run(full)
    table = suite_tables([run], "libero_pro")[0]
    assert table.rows[0].values["avg"] is None
    assert table.columns[-1].key == "avg"  # the paper's rows have one
    report = Report(tmp_path / "out", drawn=False)
    report.section("x", "X")
    report.table(suite_tables([run], "libero_pro", with_published=False)[0])
    assert ">Avg<" not in report.sections[0].blocks[0]["html"]
    assert cells(table, 0)["long_task"] == "100*"
    said = missing([run])
    assert any(
        "apt: 1 of 20 episodes have no result (Long Task 1 of 20)" in s and "between 95% and 100%" in s
        for s in said
    )

    some = make_run(tmp_path / "some", lambda c, t, i: True, {"goal_pos": 50})
    assert suite_tables([some], "libero_pro")[0].rows[0].values["avg"] is None
    assert any("not requested" in s and "Spatial Task" in s for s in missing([some]))


def test_errors_are_missing_data_not_failures(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", lambda c, t, i: True, {"goal_pos": 5})
    lost = {"outcome": "error", "failure": None}
    for init, error in [(5, "the GL context was lost"), (6, "the server died"), (7, "the worker was killed")]:
        add(path, record("goal_pos", "task_0", init, False, error=error, **lost))
    add(path, record("goal_pos", "task_0", 6, True))  # the retry
    run = load_run(path)
    row = coverage_table([run]).rows[0].values
    assert (row["finished"], row["errors"]) == (51, 2)
    assert cells(suite_tables([run], "libero_pro")[0], 0)["goal_pos"] == "100*"
    assert [r.values["error"] for r in error_table([run]).rows] == [
        "the GL context was lost", "the worker was killed",
    ]  # fmt: skip


def test_other_protocols_are_marked_and_the_setting_is_named(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", lambda c, t, i: True, ALL)
    b = make_run(tmp_path / "b", lambda c, t, i: True, ALL, protocol={**PROTOCOL, "seed": 8})
    table = suite_tables([a, b], "libero_pro")[0]
    assert table.rows[0].values["protocol"] != table.rows[1].values["protocol"]
    assert any("seed: 8 / 7" in n for n in table.notes)


def test_another_execute_horizon_is_said_and_is_no_other_protocol(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", lambda c, t, i: True, ALL)
    b = make_run(tmp_path / "b", lambda c, t, i: True, ALL, protocol={**PROTOCOL, "execute": 5})
    table = suite_tables([a, b], "libero_pro")[0]
    assert "protocol" not in [c.key for c in table.columns]
    assert any("b executes 5 actions per decision, a 10" in n for n in table.notes)


def test_probed_episodes_stay_out_of_the_headline(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", lambda c, t, i: i < 6, {"goal_pos": 10}, tasks=2)
    for init in range(10):
        add(
            path,
            record(
                "goal_pos",
                "task_0",
                init,
                init < 2,
                prompt_id="null",
                prompt="",
                end_hash="f" if init else "e",
            ),
        )
    run = load_run(path)
    assert cells(suite_tables([run], "libero_pro")[0], 0)["goal_pos"] == "60"
    table = probe_table([run])
    assert table
    assert cells(table, 0)["pairs"] == "10"
    assert [cells(table, 0)[k] for k in ("own", "probed", "difference", "sensitivity")] == [
        "60",
        "20",
        "−40",
        "90",
    ]


def test_language_and_memorised_task(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", lambda c, t, i: True, {})
    events = {
        "targets": ["bowl_1", "plate_1"], "touched": {"plate_1": 30, "bowl_2": 12}, "grasped": {"bowl_1": 40},
        "goal": {"on(bowl_1, plate_1)": {}}, "base_goal": {"on(bowl_2, plate_1)": {}}, "shortcut": 77,
    }  # fmt: skip
    add(path, record("spatial_task", "t", 0, False, failure="memorised_task", events=events))
    add(
        path,
        record("spatial_task", "t", 1, True, events={**events, "touched": {"bowl_1": 1}, "shortcut": None}),
    )
    add(path, record("spatial_task", "t", 2, False))  # without events: counts nowhere
    table = language_table([load_run(path)])
    assert table
    assert [cells(table, 0)[k] for k in (*LANGUAGE, "success")] == ["50", "100", "50", "33"]
    assert language_table([make_run(tmp_path / "none", lambda c, t, i: True, {"goal_pos": 1})]) is None


def test_flagged_episodes_with_and_without(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", lambda c, t, i: True, {"goal_pos": 1}, tasks=3)
    add(path, record("goal_pos", "task_9", 0, False, flags=("goal_holds_at_start",)))
    table = defect_table([load_run(path)])
    assert table
    assert [cells(table, 0)[k] for k in ("all", "without", "only", "flagged")] == ["75", "100", "0", "1"]


def test_controls_are_paired(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", lambda c, t, i: "stale" not in c, {"goal_task": 3, "goal_task@stale": 3})
    table = control_table([run])
    assert table
    assert [cells(table, 0)[k] for k in ("cell", "control", "drop", "pairs")] == [
        "Goal Task", "Goal Task (stale prompt)", "+100", "30",
    ]  # fmt: skip


def test_identical_initial_states_are_said(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", lambda c, t, i: True, {})
    add(path, *(record("goal_pos", "t", i, True, start_hash="same") for i in range(4)))
    assert any(
        "1 task has equal initial states among their own. Different ones: Goal Pos 't' 1 of 4." in s
        for s in missing([load_run(path)])
    )


def test_composite_and_real_rows(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", lambda c, t, i: True, {})
    for i, (t1, t2) in enumerate([(True, True), (True, False), (False, False), (False, False)]):
        scores = {"scores": {"t1": t1, "t2": t2, "t1_t2": t1 and t2}}
        add(path, record("chaining", "t", i, t1 and t2, suite="composite", events=scores))
    for i in range(3):
        add(path, record("so", "t", i, i > 0, suite="real_pick_place"))
    run = load_run(path)
    table = composite_table([run], ["chaining"])
    assert [cells(table, 0)[f"chaining.{s}"] for s in ("t1", "t2", "t1_t2")] == ["50", "25", "25"]
    assert table.rows[-1].kind == "published"
    real = real_table([run])
    assert (cells(real, 0)["pick_place.so"], cells(real, 0).get("pick_place.uo", "–")) == ("2/3", "–")


TABLE = Table(
    "demo", "A_demo & 50%",
    [Column("name", "Name", align="left"), Column("a", "Pos", "Group"), Column("b", "Task", "Group")],
    [Row({"name": "x|y_{1}", "a": Rate(0.5, 0.4, 0.6, 5, 10), "b": None}, "measured"),
     Row({"name": "π <b> †", "a": Rate(0.123), "b": Rate(-0.05, -0.1, 0.02, signed=True)}, "published")],
    ("A note: ≥ 2 × 3.",),
)  # fmt: skip


def test_one_table_in_every_format() -> None:
    assert csv_rows(TABLE) == [
        ["source", "name", "a", "a_low", "a_high", "a_k", "a_n", "b", "b_low", "b_high"],
        ["measured", "x|y_{1}", "50", "40", "60", "5", "10", "", "", ""],
        ["published", "π <b> †", "12.3", "", "", "", "", "-5", "-10", "2"],
    ]
    text = io.StringIO()
    csv.writer(text).writerows(csv_rows(TABLE))
    assert list(csv.reader(io.StringIO(text.getvalue()))) == csv_rows(TABLE)
    lines = markdown(TABLE).splitlines()
    assert lines[4].split(" | ")[1].strip() == "50 [40–60]"
    assert "x\\|y" in lines[4]
    assert len({len(line) for line in lines[2:6]}) <= 2
    page = html_table(TABLE)
    assert "<b>" not in page
    assert '<th colspan="2" scope="colgroup" class=group>Group</th>' in page
    code = latex(TABLE)
    assert r"x|y\_\{1\} & 50 {\scriptsize [40--60]} & -- \\" in code
    assert r"\cmidrule(lr){2-3}" in code
    assert code.count(r"\midrule") == 2  # between measured and published rows
    assert tex("a --b –") == r"a -{}-b --"
    assert tex("5_% ≥ é") == r"5\_\% $\geq$ ?"


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (1 - 2**-53, "100"),
        (0, "0"),
        (0.001, "0.1"),
        (0.005, "0.5"),
        (0.01, "1"),
        (0.5, "50"),
        (0.995, "99.5"),
        (0.999, "99.9"),
        (1, "100"),
    ],
)
def test_percent_never_rounds_to_the_ends(fraction: float, text: str) -> None:
    assert percent(fraction) == text


def test_signed_percent() -> None:
    assert [percent(x, signed=True) for x in (-0.032, 0.0, 0.5, -0.099)] == ["−3.2", "0.0", "+50", "−9.9"]


def test_rates_do_not_change_under_replace() -> None:
    assert dataclasses.replace(Rate(0.25, k=1, n=4), counts=True).text() == "1/4"


def test_controls_are_in_the_order_of_the_suite(tmp_path: Path) -> None:
    names = ("goal_task", "object_task", "spatial_task")
    run = make_run(
        tmp_path / "a", lambda c, t, i: True, {c + end: 1 for c in names for end in ("", "@stale")}
    )
    table = control_table([run])
    assert table is not None
    assert [r.values["cell"] for r in table.rows] == ["Spatial Task", "Object Task", "Goal Task"]
