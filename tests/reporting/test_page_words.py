"""The page explains itself: what each part shows, words for settings, and no column without a value."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path

import pytest
from chromium import chromium
from runs import PROTOCOL, add, record, write_run

from apt_bench.analysis.run import load_runs
from apt_bench.reporting.headline_tables import OWN_CHOICE
from apt_bench.reporting.probe_table import DETAILS
from apt_bench.reporting.report import Report, write_report

CELLS = {
    "so": {"max_steps": 240, "instruction": "text", "args": {"items": "seen"}},
    "train": {"max_steps": 9},
}
EVENTS = {"targets": ["cup"], "touched": {"cup": 3}, "grasped": {"cup": 4}, "goal": {"on(cup, plate)": {}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three runs of a tabletop cell, with probes, whose policies have different settings."""
    place = tmp_path_factory.mktemp("words")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Report, "figure", lambda *_: None)  # seconds each, and not what this is about
        for name, execute, cameras in (("a", 8, ["agentview", "wrist"]), ("b", 1, []), ("c", 10, [])):
            own = {"suite": "rigid_pick_place", "execute": execute, "cameras": cameras, "cells": CELLS}
            policy = {"privileged": name == "b"}
            path = write_run(place / name, lambda c, t, i: True, {}, protocol=PROTOCOL | own, policy=policy)
            for init in range(2):
                same = {"suite": "rigid_pick_place", "prompt": "Move the cup to the plate.", "events": EVENTS}
                for probe in ("default", "null", "repeat"):
                    add(path, record("so", "to_plate", init, True, prompt_id=probe, **same))
        return write_report(load_runs([f"{name}={place / name}" for name in "abc"]), place / "out").parent


def text(page: str) -> str:
    """What a reader sees."""
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", re.sub("<a .*?>|</a>", "", page))).split())


def section(folder: Path, name: str) -> str:
    """One section of the page, as HTML."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    return page.split(f'<section id="{name}">')[1].split("</section>")[0]


def test_results_say_what_was_asked_and_what_the_cells_mean(folder: Path) -> None:
    said = text(section(folder, "results"))
    assert "such as “Move the cup to the plate”. SO: seen objects:" in said
    assert "Each task names one container" in said
    assert said.count(OWN_CHOICE.split(".")[0]) == 1  # one note for all runs
    assert "b executes 1 action per decision, a 8" in said
    assert "c executes 10 actions per decision, a 8" in said


def test_columns_without_a_value_are_in_the_files_only(folder: Path) -> None:
    page = section(folder, "results").split("</table>")[0]
    assert re.findall(r'<th scope="col"[^>]*>(.*?)</th>', page)[-1] == "SO"
    with open(folder / "tables" / "rigid_pick_place.csv", encoding="utf-8") as file:
        names = next(csv.reader(file))
    assert {"uc", "uoue", "avg"} <= set(names)


def test_probes_are_explained_and_their_table_is_narrow(folder: Path) -> None:
    page = section(folder, "probes")
    said = text(page)
    assert "null (no instruction), repeat (the same instruction again" in said
    assert "swapped (" not in said  # it was not run
    assert "a, b and c: a repeat under the same instruction changed" in said
    assert page.count('<th scope="col"') == 9
    with open(folder / "tables" / "probes.csv", encoding="utf-8") as file:
        assert set(DETAILS) <= set(next(csv.reader(file)))
    assert "The files have more columns: Pairs, First contact changes, Outcome changes," in said


def test_settings_have_words_on_the_page_and_keys_in_the_files(folder: Path) -> None:
    said = text(section(folder, "protocol"))
    assert "Actions per decision 8 1 10 Cameras of the policy agentview, wrist none none" in said
    assert "Cell SO control steps at most 240, instructions from text, items seen" in said
    assert "Policy: privileged no yes no" in said
    assert "max_steps" not in said
    assert "train" not in said  # a cell that was not requested
    card = (folder / "tables" / "card_protocol.csv").read_text(encoding="utf-8")
    assert "cells.so.max_steps,240" in card
    assert "cells.train.max_steps,9" in card


def test_complete_coverage_is_said_and_folded(folder: Path) -> None:
    page = section(folder, "coverage")
    assert "Every requested episode has a result." in page
    assert "<details><summary>" in page


def test_every_width_shows_what_distinguishes_episodes(folder: Path, tmp_path: Path) -> None:
    def shown(what: str) -> str:
        return f"document.querySelector('{what}').checkVisibility()"

    with chromium(tmp_path / "profile") as page:
        page.size(1400)
        page.open(folder / "report.html")
        page.wait("document.readyState === 'complete'")
        fits = "[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)"
        assert page.run(fits)  # no table is cut on a wide screen, and those that are folded have no width
        page.size(390)
        page.open(folder / "browser" / "index.html")
        page.wait("document.querySelectorAll('#list .row').length > 3")
        assert page.run(shown("#list [data-column=probe]"))
        assert not page.run(shown("form select"))
        page.size(800)
        page.wait(shown("form select"))  # the filters were folded on the narrower window
        assert page.run(shown("#list [data-column=probe]"))
        assert page.errors == []
