"""A site of many runs: a leaderboard per suite and protocol, a page per run, pages that compare two runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from chromium import Page, chromium
from runs import PROTOCOL, add, record, write_run

from apt_bench.analysis.run import load_run, load_runs
from apt_bench.core.errors import UserError
from apt_bench.reporting import site
from apt_bench.reporting.leaderboard import board_tables, boards, selection
from apt_bench.reporting.output_folder import INDEX, SITE, WORK
from apt_bench.reporting.site import write_site
from apt_bench.runs.protocol import settings_hash


def _info(path: Path, **changes: Any) -> Path:
    file = path / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`weak` and `good` differ in the policy's own settings only. `seed` has another seed. `open` is not finished."""
    base, cells = tmp_path_factory.mktemp("runs"), {"goal_pos": 2, "goal_task": 2}
    own = PROTOCOL | {"execute": 5, "cameras": ["agentview", "wrist"]}
    weak = write_run(base / "weak", lambda c, t, i: t == "task_0", cells, tasks=2)
    good = write_run(base / "good", lambda c, t, i: True, cells, tasks=2, protocol=own)
    _info(good, selection_rule="the last step, chosen on no episode <b>", ended="2026-02-03T04:05:06+00:00")
    seed = write_run(base / "seed", lambda c, t, i: True, cells, tasks=2, protocol=PROTOCOL | {"seed": 8})
    part = write_run(base / "open", lambda c, t, i: True, cells, tasks=2)
    lines = (part / "episodes.jsonl").read_text().splitlines(keepends=True)
    (part / "episodes.jsonl").write_text("".join(lines[:3]))
    add(part, record("goal_pos", "task_1", 1, False, outcome="error", failure=None, error="lost"))
    return [f"{path.name}={path}" for path in (weak, good, seed, part)]


@pytest.fixture(scope="module")
def written(paths: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(load_runs(paths), tmp_path_factory.mktemp("site") / "out").parent


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of runs are one file, and no figure is drawn."""

    def fill(folder: Path, runs: Any, *_: Any, **__: Any) -> None:
        folder.mkdir(parents=True)
        (folder / "report.html").write_text(runs[0].label)

    monkeypatch.setattr(site, "fill_folder", fill)
    monkeypatch.setattr(site.Report, "figure", lambda *_: None)


def test_only_runs_of_one_suite_and_protocol_share_a_table(paths: list[str]) -> None:
    runs = load_runs(paths)
    found = boards(runs)
    assert [[r.label for r in b.runs] for b in found] == [["weak", "good", "open"], ["seed"]]
    assert len({b.settings for b in found}) == 2
    assert settings_hash(runs[0].protocol) == settings_hash(runs[1].protocol)
    assert runs[0].protocol_id != runs[1].protocol_id
    (table,) = board_tables(found[0], {r.label: f"runs/{r.label}" for r in runs})
    assert [r.values["method"] for r in table.rows] == ["good", "weak", "open"]  # open is not finished
    assert [r.link for r in table.rows] == ["runs/good", "runs/weak", "runs/open"]
    assert not any(r.kind == "published" for r in table.rows)
    labels = [c.label for c in table.columns]
    assert labels[:4] == [
        "Method",
        "Pos",
        "Task",
        "Episodes",
    ]  # only cells that have been run, and so no average
    facts = [[v for k, v in r.values.items() if k.startswith("site:")] for r in table.rows]
    assert facts[0] == [
        "8 of 8", "the last step, chosen on no episode <b>", "5 actions per decision, uses agentview and wrist",
        "2026-02-03", runs[1].protocol_id,
    ]  # fmt: skip
    assert facts[2][:2] == ["3 of 8, 1 error, not finished", "not stated"]


@pytest.mark.parametrize(
    ("policy", "info", "shown"),
    [
        ({}, {}, "not stated"),
        ({"weights": "a/b"}, {}, "not stated"),
        ({"weights": None}, {}, "no checkpoint"),
        ({"weights": "shipped", "about": {"shipped": "1 M"}}, {}, "ships with apt-bench"),
        ({"weights": "a/b", "about": {"selection_rule": "last"}}, {}, "last"),
        (
            {"weights": "a/b", "about": {"selection_rule": "last"}},
            {"selection_rule": "best\nof 3"},
            "best of 3",
        ),
    ],
)
def test_the_selection_rule_is_shown_or_missing(tmp_path: Path, policy: Any, info: Any, shown: str) -> None:
    path = write_run(tmp_path / "r", lambda c, t, i: True, {"goal_pos": 1}, tasks=1, policy=policy)
    assert selection(load_run(_info(path, **info))) == shown


def test_every_link_leads_to_a_file_of_the_site(written: Path) -> None:
    index = (written / INDEX).read_text()
    assert "the last step, chosen on no episode &lt;b&gt;" in index
    words = " ".join(re.sub(r"<[^>]*>", "", index).split())  # terms are links
    assert "open is not finished: 3 of the 8 requested episodes have a result." in words
    assert index.count("<small>4/4</small>") == 4
    assert index.count("<small>2/4</small>") == 2
    assert "<small>3/3</small>" in index
    assert len(set(re.findall(r'href="(runs/[^"]+)"', index))) == 4
    assert len(set(re.findall(r'href="(compare/[^"]+)"', index))) == 3  # the pairs of weak, good and open
    pages = sorted(written.rglob("*.html"))
    assert len(pages) == 1 + 4 * 2 + 3
    for page in pages:
        for link in re.findall(r'href="([^"#]+)', page.read_text()):
            if not link.startswith("data:"):
                assert (page.parent / unquote(link)).is_file(), (page, link)


def test_a_comparison_names_both_runs_and_numbers_no_unknown_task(written: Path) -> None:
    link = next(iter(re.findall(r'href="(compare/[^"]+)">good against weak', (written / INDEX).read_text())))
    text = (written / link).read_text()
    assert "good against weak" in text
    assert '<a href="../../runs/good/report.html">good</a>' in text
    assert '<a href="../../index.html">Leaderboard</a>' in text
    csv = (written / link).parent / "tables" / "compare.csv"
    assert csv.read_text().splitlines()[1].startswith("Overall,8,")


@pytest.mark.usefixtures("quick")
def test_a_rerun_updates_the_site_and_keeps_files_of_others(paths: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_site(load_runs(paths), out)
    (out / "notes.txt").write_text("mine")
    (out / "runs" / "good" / "notes.txt").write_text("mine")
    write_site(load_runs(paths[:2]), out, title="Two runs")
    assert sorted(p.name for p in (out / "runs").iterdir()) == ["good", "weak"]
    assert (out / "notes.txt").read_text() == (out / "runs" / "good" / "notes.txt").read_text() == "mine"
    assert "<h1>Two runs</h1>" in (out / INDEX).read_text()
    listed = json.loads((out / SITE).read_text())["files"]
    assert "runs/good/report.html" in listed
    assert not [name for name in listed if "notes" in name or "seed" in name]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["photo.jpg", "index.html", "report.html"])
def test_a_folder_of_other_files_is_refused(paths: list[str], tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(UserError, match=rf"holds no site \(it contains '{name}'\)\. Give --publish a new"):
        write_site(load_runs(paths), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.usefixtures("quick")
def test_a_site_that_fails_leaves_the_earlier_one(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_site(load_runs(paths), out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    monkeypatch.setattr(site, "render", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_site(load_runs(paths[:1]), out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert not (out / WORK).exists()


@pytest.mark.usefixtures("quick")
def test_many_runs_are_compared_with_the_first_and_have_their_own_folders(tmp_path: Path) -> None:
    paths = [
        f"R{'r' * n}un/{n % 2}={write_run(tmp_path / str(n), lambda c, t, i: True, {'goal_pos': 1}, tasks=1)}"
        for n in range(9)
    ]
    write_site(load_runs(paths), tmp_path / "out")
    assert len([*(tmp_path / "out" / "runs").iterdir()]) == 9
    assert len([*(tmp_path / "out" / "compare").iterdir()]) == 8


def test_names_of_folders_differ_also_without_case() -> None:
    assert site._folders(["a/b", "A_b", "a_b"]) == {"a/b": "a_b", "A_b": "A_b_2", "a_b": "a_b_3"}


def test_the_command_publishes_or_says_why_not(
    cli: Any, paths: list[str], tmp_path: Path, quick: None
) -> None:
    assert cli("report", *paths, "--publish", str(tmp_path / "out"), code=0).strip().endswith(INDEX)
    assert "Give one of them" in cli("report", *paths, "--publish", "a", "--out", "b", code=2)
    assert "at least one run" in cli("report", "--publish", str(tmp_path / "new"), code=2)
    assert not (tmp_path / "new").exists()


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Page]:
    with chromium(tmp_path / "profile") as page:
        yield page


def test_the_site_fits_any_screen_and_needs_no_network(written: Path, tab: Page) -> None:
    pages = [written / INDEX, next(written.glob("compare/*/index.html")), written / "runs/open/report.html"]
    for page in pages:
        for dark in (False, True):
            tab.size(1400, dark=dark)
            tab.open(page)
            tab.wait("document.readyState == 'complete' && document.querySelector('footer')")
            assert tab.run("getComputedStyle(document.body).backgroundColor") == (
                "rgb(22, 22, 22)" if dark else "rgb(255, 255, 255)"
            )
        for width in (390, 800, 1400):
            tab.size(width)
            assert not tab.run("document.documentElement.scrollWidth > innerWidth"), (page, width)
    tab.open(written / INDEX)
    tab.wait("document.querySelector('tbody a')")
    tab.run("document.querySelector('tbody a').click()")
    tab.wait("location.pathname.endsWith('runs/good/report.html')")
    assert tab.errors == []
    assert {r.split(":")[0] for r in tab.requests} <= {"file", "data", "about"}
