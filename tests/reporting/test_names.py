"""Nothing that a file supplies is markup, a formula, a terminal escape or code in any format of a report."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import add, record, write_run

from apt_bench.analysis.run import load_runs
from apt_bench.core.text import csv_cell, csv_text
from apt_bench.reporting import chart_style
from apt_bench.reporting.report import Report, write_report, write_tables
from apt_bench.reporting.table import Column, Rate, Row, Table, html_table, words
from apt_bench.reporting.table_files import latex, markdown, md, tex

NASTY = [
    "a/b", "../../x", "..", "'q\"", "<script>alert(1)</script>", "</td><img src=x onerror=y>", "&lt;b&gt;",
    "\\input{/etc/passwd}", "$\\frac{1", "100% & # _ ^ ~ {x}", "=cmd|'/c calc'!A1", "+1+1", "-2+3", "@SUM(1)", "\t=1",
    "a|b\\|c", "[x](http://evil)", "![x](http://evil)", "*b* _i_ `c` ~~s~~ $m$", "# h", "- x", "1. x",
    "http://a.b", "www.a.b", "@team", "a@b.c", "line\nbreak", "\r\n| x |", "\x1b[31mred\x1b[0m", "\x1b]8;;http://e\x07x",
    "\u202egnp", "\u2066x",
    "\x00", "\x7f\x9b", "漢字 😀 \u0301", "x" * 3000, "[1cm]", "*", "?`x", "---", "{{ 7*7 }}", "{% raw %}", "\u2028",
]  # fmt: skip

SOME = [*NASTY[:1], *NASTY[4:8], *NASTY[10:12], *NASTY[15::4]]
"""For what takes longer."""

names = st.sampled_from(NASTY) | st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)
STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]"
)


def table(*texts: str) -> Table:
    columns = [Column(str(i), text, text) for i, text in enumerate(texts)]
    rows = [Row({str(i): text for i, text in enumerate(texts)}), Row({"0": Rate(0.5, 0.4, 0.6)}, "published")]
    return Table("t", texts[0], columns, rows, texts)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@given(st.lists(names, min_size=1, max_size=3))
def test_a_table_in_html_has_no_tag_of_a_file(texts: list[str]) -> None:
    page = Tags()
    page.feed(html_table(table(*texts)))
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "small"}
    assert page.attributes <= {"class", "scope", "colspan", "style"}
    assert not STEERING.search("".join(page.text))


@given(st.lists(names, min_size=1, max_size=3))
def test_a_table_in_csv_has_no_formula_and_every_text(texts: list[str]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([[csv_cell(t) for t in texts]])
    (row,) = csv.reader(io.StringIO(text.getvalue(), newline=""))
    for cell, name in zip(row, texts, strict=True):
        assert not STEERING.search(cell)
        assert not re.match(r"[=@\t\r\n]|[+-](?![\d.]+(e[+-]?\d+)?$)", cell) or is_number(cell), cell
        assert csv_text(cell) == name or STEERING.search(name) or "\t" in name


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@given(st.lists(names, min_size=1, max_size=3))
def test_a_table_in_markdown_keeps_its_shape(texts: list[str]) -> None:
    lines = markdown(table(*texts)).split("\n")
    assert not STEERING.search("".join(lines))
    cells = [re.split(r"(?<!\\)(?:\\\\)*\|", line) for line in (lines[2], lines[4], lines[5])]
    assert {len(c) for c in cells} == {len(texts) + 2}
    assert len(lines) == 8 + len(texts)  # title, blank, head, rule, two rows, blank, notes, the end
    for line in lines[7:-1]:
        assert not re.match(r"\s*(#|>|[-+=*]\s|\d+[.)]\s|    )", line)


@given(names)
def test_markdown_is_text(text: str) -> None:
    """All characters with a meaning in Markdown are escaped; there is no tag, link or mention."""
    found = re.sub(r"\\[\\`*_\[\]~|$!]", "", md(text)).replace("&#8203;", "\u200b")
    assert not re.search(r"[`*\[\]~|$<]|(?i:https?://|www\.)|(?<!\w)@\w|&(?!amp;|lt;)", found)


@given(names)
def test_latex_is_text(text: str) -> None:
    """Braces balance, and only commands that this module writes occur."""
    code = tex(text)
    assert code.isascii()
    assert "\n" not in code
    known = (
        "textbackslash", "textasciitilde", "textasciicircum", "pm", "dagger", "ddagger", "to", "times", "geq", "leq",
        "checkmark", "textperiodcentered", "textless", "textgreater", "pi", "Delta", "ldots",
    )  # fmt: skip
    assert set(re.findall(r"\\([a-zA-Z]+)", code)) <= set(known)
    bare = re.sub(r"\\[&%$#_{}]", "", code)
    assert bare.count("{") == bare.count("}")
    assert not re.search(r"[%#&_~^]|--(?!$|[^-])-|^[\[*]", re.sub(r"\$[^$]*\$", "", bare))


def test_a_row_of_latex_never_begins_with_an_argument_of_the_line_break() -> None:
    code = latex(table("[1cm] \\", "x"))
    assert "\\\\\n[" not in code
    assert tex("[x] *") == "{[}x{]} *"
    assert tex("* a") == "{*} a"
    assert tex("a --- b") == "a -{}-{}- b"


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which every name contains markup or escapes."""
    path = tmp_path_factory.mktemp("nasty") / "run"
    policy = {"name": NASTY[4], "args": {"x": NASTY[7]}}
    write_run(path, lambda c, t, i: True, {}, policy=policy, protocol={"suite": "=x", "$a$": NASTY})
    for i, name in enumerate(SOME):
        change = {
            "failure": name,
            "error": name,
            "flags": (name,),
            "video": name,
            "prompt": name,
            "policy": name,
        }
        events = {
            "targets": [name],
            "touched": {name: 1},
            "grasped": {name: 2},
            "goal": {f"on({name}, x)": {}},
        }
        add(
            path,
            record(name, name, i, False, suite=SOME[i % 3], events=events, seconds={name: 1.0}, **change),
        )
        add(path, record(name, name, i, False, suite=SOME[i % 3], prompt_id=name, **change))
        add(path, record(name, name, 99, False, suite="composite", outcome="error", error=name))
    asked = {name: {name: 3} for name in SOME}
    info = json.loads((path / "run.json").read_text())
    info |= {
        "requested": asked,
        "requested_probes": dict.fromkeys(NASTY[:3], asked),
        "unavailable": {NASTY[0]: {NASTY[4]: NASTY[5]}},
    }
    (path / "run.json").write_text(json.dumps(info))
    return path


def test_a_report_of_nasty_names_is_safe_and_stays_in_its_folder(nasty: Path, tmp_path: Path) -> None:
    write_tables(load_runs([str(nasty)]), tmp_path / "a" / "out")
    assert [p.name for p in tmp_path.rglob("*") if p.is_dir()] == ["a", "out", "tables"]
    for path in (tmp_path / "a" / "out" / "tables").iterdir():
        text = path.read_text(encoding="utf-8")
        assert not STEERING.search(text.replace("\r\n", "\n")), path
        if path.suffix == ".csv":
            for cell in (cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row):
                assert not cell.startswith(("=", "@", "+1+", "-2+")), (path, cell)


def test_a_page_of_nasty_names_is_only_text(
    nasty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Report, "figure", lambda *_: None)  # drawn in the next test
    (run,) = load_runs([f"<b>{{{{x}}}} '\"={nasty}"])
    text = write_report([run], tmp_path / "out", title="<i>\x1b[31m\u202e</i>").read_text(encoding="utf-8")
    page = Tags()
    page.feed(text)
    assert not page.tags & {"script", "b1", "i", "img", "iframe", "object", "form"}
    assert not {a for a in page.attributes if a.startswith("on")}
    assert not STEERING.search(text)
    assert "&lt;script&gt;alert(1)" in text


def test_figures_of_nasty_names_are_drawn_without_a_warning(nasty: Path, tmp_path: Path) -> None:
    """In a process in which a warning would be an error: a missing glyph, mathtext, a layout that does not fit."""
    script = (
        "import sys, warnings; warnings.simplefilter('error');"
        "from apt_bench.reporting import chart_style, charts; from apt_bench.analysis.run import load_runs;"
        "from apt_bench.reporting.headline_tables import suite_tables; from pathlib import Path;"
        "runs = load_runs([sys.argv[1]]); out = Path(sys.argv[2]);"
        "save = chart_style.save; save(charts.heat_map(runs), 'heat', out);"
        "save(charts.outcome_chart(runs), 'ends', out)"
    )
    few = tmp_path / "run"
    write_run(few, lambda c, t, i: True, {}, policy={"name": "$\\frac{ 漢 😀"})
    for i, name in enumerate(["$x_{", "漢字 😀", "x" * 90, "\x1b[1m", "_a", "%s", "\\"]):
        add(few, record(name, name, i, False, suite="mine", failure=name))
    subprocess.run([sys.executable, "-c", script, str(few), str(tmp_path / "out")], check=True)
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_name_is_never_read_as_mathematics(tmp_path: Path) -> None:
    with chart_style.style():
        import matplotlib as mpl

        assert not mpl.rcParams["text.parse_math"]
        assert not mpl.rcParams["text.usetex"]


def test_suites_whose_file_names_agree_keep_their_tables(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {})
    for suite in ("a/b", "a_b", "coverage", "A_B"):
        add(path, record("x", "t", 0, True, suite=suite))
    write_tables(load_runs([str(path)]), tmp_path)
    titles = [p.read_text().splitlines()[0] for p in sorted((tmp_path / "tables").glob("*.md"))]
    assert {"**a/b**", "**a_b**", "**A_B**", "**coverage**", "**Coverage**"} <= set(titles)


def test_a_gain_in_a_cell_called_like_a_column_hides_no_policy(tmp_path: Path) -> None:
    from apt_bench.reporting.two_stage_gain import gain_table

    cells = {"method": 2, "method ": 2}  # the second as only a foreign file can name it
    runs = []
    for two_stage in (True, False):
        path = tmp_path / str(two_stage)
        write_run(path, lambda c, t, i, won=two_stage: won, cells, policy={"two_stage": two_stage})
        runs.append(str(path))
    table = gain_table(load_runs(runs), "libero_pro", list(cells))
    assert table is not None
    (row,) = table.rows
    assert str(row.values["method"]).startswith("apt")
    keys = [c.key for c in table.columns]
    assert len(set(keys)) == 3
    assert [words(row.values[k])[:4] for k in keys[1:]] == ["+100"] * 2


def test_a_cell_or_class_called_like_a_column_hides_none(tmp_path: Path) -> None:
    from apt_bench.reporting.episode_tables import outcome_table
    from apt_bench.reporting.headline_tables import suite_tables

    path = write_run(tmp_path / "run", lambda c, t, i: True, {})
    for cell in ("method", "avg", "protocol"):
        add(
            path,
            record(cell, "t", 0, True, suite="mine"),
            record(cell, "t", 1, False, suite="mine", failure="run"),
        )
    add(path, record("x", "t", 2, False, suite="mine", failure="success", outcome="failure"))
    (run,) = load_runs([str(path)])
    (table,) = suite_tables([run], "mine")
    assert table.rows[0].values["method"] == "apt"
    assert len({c.key for c in table.columns}) == len(table.columns)
    outcomes = outcome_table([run])
    assert {r.values["run"] for r in outcomes.rows} == {"apt"}
    assert sum(int(str(r.values.get("success", 0))) for r in outcomes.rows) == 3
