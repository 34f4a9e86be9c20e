"""The page as a reader meets it: the answer first, terms explained, words for identifiers, any screen."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from chromium import chromium
from runs import add, make_run, record, write_run

from apt_bench.analysis.run import load_run, load_runs
from apt_bench.core.wording import in_words
from apt_bench.reporting import charts
from apt_bench.reporting.chart_style import run_colours, save, style
from apt_bench.reporting.glossary import linked
from apt_bench.reporting.headline_tables import suite_tables
from apt_bench.reporting.inline_svg import panels
from apt_bench.reporting.opening import opening
from apt_bench.reporting.report import Report, write_report, write_tables
from apt_bench.reporting.table import TASK, Row, Table, html_table
from apt_bench.reporting.table_files import csv_rows, latex, markdown


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with probes, a stale control, events, an error and many unequal requests."""
    policy = {"about": {"shipped": "1.3 M parameters"}}
    path = write_run(
        tmp_path_factory.mktemp("page") / "run", lambda c, t, i: i < 2, {"goal_task": 5}, policy=policy
    )
    events = {
        "targets": ["black_bowl_1"], "touched": {"black_bowl_1": 3}, "grasped": {"black_bowl_1": 4},
        "goal": {"on(black_bowl_1, plate_1)": {}}, "base_goal": {"on(black_bowl_2, plate_1)": {}}, "shortcut": 9,
    }  # fmt: skip
    for init in range(3):
        add(path, record("goal_task", "task_0", init, init < 1, prompt_id="null", prompt=""))
        add(path, record("goal_task@stale", "task_0", init, init < 2))
    add(path, record("goal_task", "task_0", 9, False, failure="memorised_task", events=events))
    for task in range(8):
        lost = {"outcome": "error", "failure": None, "error": "x" * 90}
        add(path, record(f"goal_pos{task}", f"put_the_black_bowl_on_plate_{task}", 0, False, **lost))
    return path


def test_the_page_begins_with_one_sentence_per_run(run_folder: Path) -> None:
    found = opening(load_run(run_folder, "mine"))
    assert (found["label"], found["about"]) == ("mine", "(shipped, 1.3 M parameters)")
    assert found["sentence"].startswith(
        "solved 20 of 51 finished episodes of LIBERO-PRO: 39% (95% interval 27 to 53%)."
    )
    assert (
        "without an instruction (null) in 1 of 3, under the old instruction (stale) in 2 of 3."
        in found["sentence"]
    )
    assert found["sentence"].endswith("It did the original task, the memorised one, in 1 of 1.")


def test_the_page_names_a_policy_that_reads_the_state(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", lambda c, t, i: True, {"goal_pos": 1}, policy={"privileged": True})
    page = write_report([load_run(path, "mine")], tmp_path / "out", browser=False).read_text()
    assert "<b>mine</b> (reads from the simulator where everything is) solved 10 of 10" in re.sub(
        "</?a.*?>", "", page
    )


def test_a_run_without_a_result_has_no_rate(tmp_path: Path) -> None:
    assert opening(load_run(write_run(tmp_path / "r", lambda c, t, i: True, {})))["sentence"].startswith(
        "has no fin"
    )


def test_terms_are_linked_where_they_are_first_used_and_explained_once() -> None:
    body = '<h2>SO</h2><td title="UO">x</td><svg>UO</svg><p>UOUE, SO and SO-101</p><p>SO, null</p>'
    text, terms = linked(body)
    assert text.count('<a class="term" href="#term-so">SO</a>') == 1
    assert text.index("#term-so") > text.index("</h2>")
    assert text.endswith('<p>SO, <a class="term" href="#term-null">null</a></p>')
    assert [t.id for t in terms] == ["so", "uoue", "null"]
    assert re.sub(r'<a class="term"[^>]*>(.*?)</a>', r"\1", text) == body


def test_people_get_words_and_files_identifiers() -> None:
    assert in_words("akita_black_bowl_1") == "akita black bowl (1)"
    assert in_words("put_it_in_3_bowls") == "put it in (3) bowls"
    table = Table("t", "T", [TASK], [Row({"task": "black_bowl_1"})])
    for text in (html_table(table), markdown(table), latex(table)):
        assert "black bowl (1)" in text
        assert "black_bowl" not in text
    assert csv_rows(table)[1] == ["black_bowl_1"]


def test_every_rate_on_the_page_has_its_counts(run_folder: Path) -> None:
    html = html_table(suite_tables([load_run(run_folder)], "libero_pro")[0])
    assert "<small>20/51</small>" in html


def test_the_papers_rows_are_beside_measured_ones_only_in_its_own_suite(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", lambda c, t, i: True, {"goal_pos": 1})
    add(path, record("so", "to_plate", 0, True, suite="rigid_pick_place"))
    write_tables(load_runs([str(path)]), tmp_path / "out")
    folder = tmp_path / "out" / "tables"
    assert "†" in (folder / "libero_pro.md").read_text()
    assert "†" not in (folder / "rigid_pick_place.md").read_text()
    assert "no baseline for the measured rows" in (folder / "rigid_pick_place_published.md").read_text()
    assert not list(folder.glob("gain_*"))  # no measured pair
    write_tables(load_runs([str(path)]), tmp_path / "without", with_published=False)
    assert not any("†" in p.read_text() for p in (tmp_path / "without" / "tables").glob("*.md"))
    write_tables([], tmp_path / "paper")
    assert (tmp_path / "paper" / "tables" / "gain_rigid_pick_place.md").is_file()


def test_one_heat_map_has_all_runs_and_cells_without_episodes_take_no_room(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", lambda c, t, i: True, {"goal_pos": 2}, tasks=2)
    b = make_run(tmp_path / "b", lambda c, t, i: False, {"goal_pos": 2, "goal_task": 2}, tasks=2)
    figure = charts.heat_map([a, b])
    assert figure
    assert [[t.get_text() for t in x.get_xticklabels()] for x in figure.axes] == [["a", "b"], ["b"]]
    table = suite_tables([a, b], "libero_pro", with_published=False)[0]
    chart = charts.success_chart(table, run_colours(["a", "b"]))
    assert chart
    (axis,) = chart.axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["Goal Pos", "Goal Task"]
    assert [t.get_text() for t in chart.legends[0].get_texts()] == ["a", "b"]


def test_bars_of_runs_never_overlap(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / n, lambda c, t, i: True, {"goal_pos": 2}, tasks=2) for n in "abc"]
    chart = charts.success_chart(suite_tables(runs, "libero_pro", False)[0], run_colours(list("abc")))
    assert chart
    places = sorted((p.get_y(), p.get_y() + p.get_height()) for p in chart.axes[0].patches)
    assert all(top <= bottom for (_, top), (bottom, _) in pairwise(places))


def test_panels_of_a_figure_share_no_id_and_have_the_pages_colours(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", lambda c, t, i: i % 2 == 0, {"goal_pos": 2, "goal_task": 2}, tasks=2)
    with style():
        figure = charts.heat_map([run])
    assert figure
    boxes = save(figure, "x", tmp_path / "out", pdf=True)
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".svg", ".png", ".pdf"}
    text = (tmp_path / "out" / "x.svg").read_text()
    found = "".join(panels(text, boxes, "f1") + panels(text, boxes, "f2"))
    assert len(boxes) == 2 == found.count("<svg") / 2
    ids = re.findall(r' id="([^"]+)"', found)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'(?:href="#|url\(#)([\w-]+)', found)) <= set(ids)
    assert "var(--ink)" in found
    assert "http" not in found


WIDE = """(() => {
  const wide = (e) => e.getBoundingClientRect().right > innerWidth + 1;
  const found = [...document.querySelectorAll('svg, p, summary, dl, figure, .scroll')].filter(wide);
  return [document.documentElement.scrollWidth > innerWidth, found.length];
})()"""

LINES = """Math.max(...[...document.querySelectorAll('thead th')].map((e) => e.getBoundingClientRect().height
  / parseFloat(getComputedStyle(e).lineHeight)))"""

FIRST = """[...document.querySelectorAll('.scroll')].every((e) => {
  e.scrollLeft = 1e6;
  const cell = e.querySelector('tbody td');
  return !cell.offsetParent || cell.getBoundingClientRect().left >= e.getBoundingClientRect().left - 1;
})"""


def test_the_page_fits_any_screen_and_prints_what_is_folded(run_folder: Path, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as page:
        report = write_report([load_run(run_folder)], tmp_path / "out", browser=False)
        assert report.read_text().index('class="answer"') < report.read_text().index('class="missing"')
        page.open(report)
        page.wait("document.readyState == 'complete' && document.querySelector('footer')")
        for width in (390, 800, 1400):
            page.size(width)
            assert page.run(WIDE) == [False, 0], width
            assert page.run(LINES) < 5, width
            assert page.run(FIRST), width
        light = page.run("getComputedStyle(document.body).backgroundColor")
        page.size(1400, dark=True)
        assert page.run("getComputedStyle(document.body).backgroundColor") != light
        folded = "[...document.querySelectorAll('details table, details li')]"
        assert page.run(f"{folded}.filter((e) => e.checkVisibility()).length") == 0
        assert page.run(f"{folded}.length") > 2
        page.call("Emulation.setEmulatedMedia", media="print")
        assert page.run(f"{folded}.every((e) => e.checkVisibility() && e.offsetHeight > 0)")
        assert page.errors == []
        assert [r for r in page.requests if not r.startswith(("file:", "data:", "about:"))] == []


def test_pdf_is_written_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(tmp_path, pdf=True)
    report.section("x", "X")
    with style():
        from matplotlib.figure import Figure

        figure = Figure()
        figure.subplots()
    report.figure("none", lambda: None, "No figure.")
    report.figure("f", lambda: figure, "A figure.")
    steps: list[str] = []
    report.draw_figures(steps.append)
    assert steps == ["Drawing figures: 0 of 2 done", "Drawing figures: 1 of 2 done"]
    assert [b["name"] for b in report.sections[0].blocks] == ["f"]
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"f.svg", "f.png", "f.pdf"}
    assert report.sections[0].blocks[0]["kinds"] == ("png", "svg", "pdf")
