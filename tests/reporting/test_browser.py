"""The episode browser's folder and its data. `test_browser_page.py` opens it in Chromium."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from apt_bench.analysis.run import load_run, load_runs
from apt_bench.reporting import browser, browser_data
from apt_bench.reporting.browser import write_browser
from apt_bench.reporting.browser_data import EpisodeData
from apt_bench.reporting.report import write_report
from tests.clock import in_time
from tests.runs import add, record, write_run

HOSTILE = "'); alert(1); ('</script><img src=x onerror=alert(1)>\\\u2028\u202e\n\"é漢"


def content(script: str) -> Any:
    """The JSON in a chunk; fails if the chunk is more than one call with one string."""
    found = re.fullmatch(r"episodes\.(?:rows|records)\('([^'\n\r\u2028\u2029]*)'\);\n", script)
    assert found, script[:300]
    assert not re.search(r"\\(?!u00[0-9a-f]{2}|u202[89])", found[1])
    return json.loads(re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), found[1]))


def table(data: EpisodeData) -> list[dict[str, Any]]:
    """Every row with its texts, from the chunks, as the browser builds them."""
    names: dict[str, list[Any]] = {}
    rows: list[dict[str, Any]] = []
    while True:
        chunk = content(data.rows(len(rows)))
        assert chunk["start"] == len(rows)
        for name, added in chunk["names"].items():
            names.setdefault(name, []).extend(added)
        columns = chunk["columns"]
        rows += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if not chunk["more"]:
            return [{k: names[k][v] if k in names else v for k, v in row.items()} for row in rows]


def read(*runs: Path) -> EpisodeData:
    data = EpisodeData(load_runs([f"{run.name}={run}" for run in runs]), lambda run, name: "")
    data.read()
    return data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "one", lambda c, t, i: i == 0, {"goal_pos": 2, "goal_task@stale": 1}, tasks=3)


def test_a_report_has_a_browser_and_leads_to_it(run: Path, tmp_path: Path) -> None:
    page = write_report([load_run(run)], tmp_path / "out")
    assert 'href="browser/index.html"' in page.read_text()
    files = json.loads((tmp_path / "out" / "report-files.json").read_text())["files"]
    assert {
        f"browser/{f}"
        for f in ("index.html", "browser.js", "browser.css", "data/rows-0.js", "data/records-0.js")
    } <= {*files}
    write_report([load_run(run)], tmp_path / "out")  # replaces it
    (run / "episodes.jsonl").unlink()
    page = write_report([load_run(run)], tmp_path / "out")
    assert "browser" not in page.read_text()
    assert not (tmp_path / "out" / "browser").exists()


def test_rows_have_what_the_records_say(run: Path) -> None:
    events = {"targets": ["cup_1"], "touched": {"bowl_1": 9, "cup_1": 12}}
    add(
        run,
        record("goal_pos", "task_9", 7, False, prompt_id="null", prompt="", events=events, flags=("bad",)),
    )
    rows = table(read(run))
    assert len(rows) == 10
    last = rows[-1]
    assert last["cell"] == ["libero_pro/goal_pos", "Goal Pos"]
    assert (last["task"], last["init"], last["seed"], last["steps"], last["tenths"]) == (
        "task_9",
        7,
        7,
        100,
        15,
    )
    assert (last["probe"], last["outcome"], last["failure"]) == (
        ["null", "null", "null"],
        "timeout",
        "no_grasp",
    )
    assert (last["sentence"], last["source"], last["contact"]) == ("", "bddl", "bowl_1")
    assert (last["heeded"], last["film"], last["flagged"], last["replaces"]) == (0, 0, 1, -1)
    assert rows[0]["heeded"] == -1
    assert {r["probe"][0] for r in rows} == {"own instruction", "stale control", "null"}


def test_names_come_with_the_first_chunk_that_needs_them(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = table(read(run))
    monkeypatch.setattr(browser_data, "ROWS", 2)
    assert table(read(run)) == whole
    assert len({r["task"] for r in whole}) == 3


def test_equal_scenes_are_equal_across_runs_prompts_and_the_stale_control(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, lambda c, t, i: True, {"goal_task": 2}, tasks=2) for name in ("a", "b")
    ]
    add(runs[0], record("goal_task", "task_1", 1, False, prompt_id="null"))
    add(runs[1], record("goal_task@stale", "task_1", 1, False), record("goal_task", "task_1", 5, False))
    rows = table(read(*runs))
    scene = next(r["scene"] for r in rows if (r["task"], r["init"]) == ("task_1", 1))
    same = [(r["run"], r["probe"][0]) for r in rows if r["scene"] == scene]
    assert same == [(0, "own instruction"), (0, "null"), (1, "own instruction"), (1, "stale control")]
    assert len({r["scene"] for r in rows}) == 5


def test_a_later_record_replaces_an_earlier_one_but_an_error_no_result(run: Path) -> None:
    key = ("goal_pos", "again", 0)
    for outcome in ("error", "timeout", "error", "success"):
        add(run, record(*key, outcome == "success", outcome=outcome, failure=None))
    rows = table(read(run))
    assert [(r["outcome"], r["replaces"]) for r in rows[9:]] == [
        ("error", -1),
        ("timeout", 9),
        ("success", 10),
    ]
    counted = load_run(run).frame
    replaced = {r["replaces"] for r in rows}
    assert sum(i not in replaced for i in range(len(rows))) == len(counted)


def test_text_of_records_stays_text(run: Path, tmp_path: Path) -> None:
    events = {HOSTILE: HOSTILE, "__proto__": {"x": 1}, "touched": {HOSTILE: 3}}
    hostile = record(
        "goal_pos", "t", 0, False, prompt=HOSTILE, policy=HOSTILE, failure=HOSTILE, events=events
    )
    add(run, hostile)
    data = EpisodeData([load_run(run, HOSTILE)], lambda run, name: HOSTILE)
    data.read()
    assert table(data)[-1]["sentence"] == HOSTILE
    records = content(data.records(0))["records"]
    assert records[-1]["prompt"] == HOSTILE
    assert records[-1]["events"] == events
    write_browser([load_run(run)], tmp_path / "out", HOSTILE)
    page = (tmp_path / "out" / "browser" / "index.html").read_text()
    assert "<img" not in page
    assert page.count("<script") == 1


def test_numbers_that_json_has_not_are_written_as_text(run: Path) -> None:
    with open(run / "episodes.jsonl", "a") as file:
        old = json.loads(record("goal_pos", "old", 0, True).to_json())
        file.write(json.dumps({**old, "seconds": {"reset": float("nan"), "physics": 2.0}}) + "\n")
    data = read(run)
    assert table(data)[-1]["tenths"] == 20
    assert content(data.records(0))["records"][-1]["seconds"]["physics"] == 2.0


def test_records_are_in_the_order_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_data, "RECORDS", 4)
    data = read(
        *(write_run(tmp_path / n, lambda c, t, i: i > 1, {"goal_pos": 3}, tasks=3) for n in ("a", "b"))
    )
    rows, chunks = table(data), [content(data.records(k)) for k in range(5)]
    assert [c["start"] for c in chunks] == [0, 4, 8, 12, 16]
    records = [r for c in chunks for r in c["records"]]
    assert [(r["key"]["task"], r["key"]["init"], r["outcome"]) for r in records] == [
        (r["task"], r["init"], r["outcome"]) for r in rows
    ]


def test_a_growing_run_is_read_on(run: Path) -> None:
    data = read(run)
    line = record("goal_task", "new_task", 0, True).to_json()
    with open(run / "episodes.jsonl", "a") as file:
        file.write(line[:50])
    data.read()
    assert len(data) == 9
    with open(run / "episodes.jsonl", "a") as file:
        file.write(line[50:] + "\n")
    data.read()
    chunk = content(data.rows(9, live=True))
    assert (chunk["live"], chunk["more"], len(chunk["columns"]["run"])) == (True, False, 1)
    assert chunk["names"]["task"] == ["new_task"]
    assert chunk["names"]["outcome"] == []
    assert content(data.records(0))["records"][9]["key"]["task"] == "new_task"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: path.write_text(""), "was replaced"),
        (lambda path: path.write_text(path.read_text() + "{}\n"), "is damaged"),
        (lambda path: path.write_text(path.read_text() + "[1\n"), "Cannot read"),
    ],
)
def test_a_run_that_is_damaged_meanwhile_is_reported_and_read_no_more(
    run: Path, change: Any, says: str
) -> None:
    data = read(run)
    change(run / "episodes.jsonl")
    for _ in range(2):
        data.read()
    assert says in content(data.rows(9))["runs"][0]["problem"]
    assert len(data) == 9


def test_films_are_linked_up_to_a_limit(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "videos").mkdir()
    for name in ("a.mp4", "b.webm", "big.mp4"):
        (run / "videos" / name).write_bytes(name.encode() * 10)
    (tmp_path / "secret.mp4").write_text("secret")
    (run / "videos" / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    names = [
        "videos/a.mp4",
        "videos/b.webm",
        "videos/big.mp4",
        "videos/gone.mp4",
        "../secret.mp4",
        "videos/out.mp4",
    ]
    for i, name in enumerate(names):
        add(run, record("goal_pos", "filmed", i, True, video=name))
    monkeypatch.setattr(browser, "FILM_BYTES", 120)
    write_browser([load_run(run)], tmp_path / "out", "t")
    folder = tmp_path / "out" / "browser"
    films = content((folder / "data" / "records-0.js").read_text())["films"]
    assert films == {"9": "films/1.mp4", "10": "films/2.webm"}
    assert {f.name for f in (folder / "films").iterdir()} == {"1.mp4", "2.webm"}
    assert os.path.samefile(folder / "films" / "1.mp4", run / "videos" / "a.mp4")


@pytest.mark.slow
def test_a_hundred_thousand_episodes_are_written_in_seconds(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: i % 3 > 0, {"goal_pos": 5000, "goal_task": 5000})
    runs = [load_run(path)]
    start = time.process_time()
    write_browser(runs, tmp_path / "out", "many")
    assert in_time(time.process_time() - start, 10)
    sizes = [f.stat().st_size for f in (tmp_path / "out" / "browser" / "data").glob("rows-*.js")]
    assert len(sizes) == 5
    assert sum(sizes) < 8e6
