"""The episode browser in Chromium: from a folder, and from `apt-bench view` while a run grows."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from apt_bench.analysis.run import load_runs
from apt_bench.cli._view_pages import Pages
from apt_bench.reporting.browser import write_browser
from apt_bench.serving.view import PageServer
from tests.chromium import Page, chromium
from tests.clock import in_time
from tests.runs import add, record, write_run

pytestmark = pytest.mark.medium

HOSTILE = "</script><script>window.broken=1</script><img src=x onerror='window.broken=1'>\u2028'); window.broken=1; ('"
READY = "document.body && document.body.dataset.ready"
EVENTS = {
    "targets": ["akita_black_bowl_1"],
    "touched": {"akita_black_bowl_1": 20, "plate_1": 60},
    "grasped": {"akita_black_bowl_1": 30},
    "goal": {"on(akita_black_bowl_1, plate_1)": {"start": False, "first": 90, "last": True}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The browser of two runs that differ in init 1: `one` has a probe, hostile text and a film, `two` a film."""
    base = tmp_path_factory.mktemp("browser")
    one = write_run(base / "one", lambda c, t, i: i < 2, {"goal_pos": 3, "goal_task": 3}, tasks=4)
    two = write_run(base / "two", lambda c, t, i: i < 1, {"goal_pos": 3, "goal_task": 3}, tasks=4)
    for path in (one, two):
        (path / "videos").mkdir()
        _film(path / "videos" / "a.mp4")
        add(path, record("goal_pos", "filmed", 0, path == one, events=EVENTS, video="videos/a.mp4"))
    bad: dict[str, Any] = {"prompt": HOSTILE, "policy": HOSTILE, "prompt_source": HOSTILE, "error": HOSTILE}
    events = {"touched": {HOSTILE: 1}, HOSTILE: HOSTILE, "goal": {HOSTILE: {"first": 3, "last": False}}}
    add(
        one, record(f"c{HOSTILE}", HOSTILE, 0, False, failure=HOSTILE, flags=(HOSTILE,), events=events, **bad)
    )
    add(one, record("goal_pos", "task_0", 1, False, prompt_id="null", prompt=""))
    write_browser(load_runs([f"one={one}", f"two={two}"]), base / "out", f"one and two {HOSTILE}")
    return base


def _film(path: Path) -> None:
    import imageio_ffmpeg

    pixels = [
        "-f",
        "lavfi",
        "-i",
        "color=c=red:s=64x64:d=0.5",
        "-c:v",
        "libvpx",
        "-f",
        "webm",
    ]  # Chromium has no H.264
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *pixels, str(path)], check=True)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    profile = tmp_path_factory.mktemp("profile")
    with chromium(profile) as found:
        yield found
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture
def page(folder: Path, tab: Page) -> Iterator[Page]:
    """The browser of `folder`, opened as a file. No error, and no request to another place, at the end."""
    tab.errors.clear()
    tab.requests.clear()
    tab.size(1400)
    _open(tab, folder)
    yield tab
    assert tab.errors == []
    assert {address.split(":")[0] for address in tab.requests} <= {"file", "data"}
    assert tab.run("window.broken") is None


def _open(tab: Page, folder: Path, state: str = "") -> None:
    tab.open("about:blank")
    tab.open(f"{(folder / 'out' / 'browser' / 'index.html').as_uri()}{state}")
    tab.wait(READY)


def status(tab: Page) -> str:
    return tab.run("document.getElementById('status').textContent")


def choose(tab: Page, name: str, value: str | bool) -> None:
    property = "checked" if isinstance(value, bool) else "value"
    field = f"document.forms.filters.{name}"
    tab.run(
        f"{field}.{property} = {json.dumps(value)}; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )


def rows(tab: Page, column: str = "task") -> list[str]:
    return tab.run(f"[...document.querySelectorAll('.row [data-column={column}]')].map((c) => c.textContent)")


def test_filters_and_sorting(page: Page) -> None:
    assert status(page) == "52 of 52 episodes"
    for name, value, left in [
        ("run", "one", 27), ("cell", "libero_pro/goal_pos", 14), ("outcome", "timeout", 5), ("failure", "no_grasp", 5),
        ("probe", "null", 1),
    ]:  # fmt: skip
        choose(page, name, value)
        assert status(page) == f"{left} of 52 episodes", name
    assert rows(page) == ["task 0"]
    assert rows(page, "outcome") == ["no grasp"]
    page.run("document.querySelector('button[type=reset]').click()")
    page.wait("document.getElementById('status').textContent === '52 of 52 episodes'")
    choose(page, "words", "BLACK bowl (1)")
    assert rows(page) == ["filmed", "filmed"]
    choose(page, "words", "")
    choose(page, "film", True)
    assert rows(page, "film") == ["▶", "▶"]
    choose(page, "film", False)
    choose(page, "sort", "-init")
    assert rows(page, "init")[:3] == ["2", "2", "2"]
    page.run("document.querySelector('#head [data-column=init] button').click()")
    assert rows(page, "init")[:3] == ["0", "0", "0"]


def test_counts_beside_a_choice_are_what_the_choice_gives(page: Page) -> None:
    choose(page, "outcome", "success")
    for name in ("run", "cell", "task", "probe"):
        options = page.run(
            f"[...document.forms.filters.{name}.options].slice(1).map((o) => [o.value, o.text])"
        )
        assert options
        for value, text in options:
            choose(page, name, value)
            assert text.endswith(f"({status(page).split(' of ')[0]})")
            choose(page, name, "")


def test_only_where_a_and_b_differ(page: Page) -> None:
    choose(page, "a", "one|own instruction")
    choose(page, "b", "two|own instruction")
    assert status(page) == "25 of 25 pairs of A and B"
    choose(page, "differ", True)
    assert status(page) == "9 of 25 pairs of A and B"
    assert set(rows(page, "outcome")) == {"success / no grasp"}
    assert sorted(set(rows(page, "init"))) == ["0", "1"]
    choose(page, "b", "one|null")
    assert status(page) == "1 of 1 pairs of A and B"


def test_an_episode_beside_its_partner(page: Page) -> None:
    choose(page, "task", "filmed")
    page.run("document.querySelector('.row').click()")
    page.wait("document.querySelectorAll('#episode video').length === 2")
    shown = page.run("document.getElementById('episode').innerText")
    assert "one, own instruction: success" in shown
    assert "two, own instruction: no grasp" in shown
    assert "first contact: black bowl (1)" in shown
    assert "goal reached: black bowl (1) on plate (1)" in shown
    assert page.run("document.querySelectorAll('#episode svg circle').length") == 8
    page.wait(
        "[...document.querySelectorAll('video')].every((v) => v.readyState >= 2 && v.videoWidth === 64)"
    )
    page.press(" ")
    page.wait("[...document.querySelectorAll('video')].every((v) => !v.paused)")
    page.press(" ")
    page.wait("[...document.querySelectorAll('video')].every((v) => v.paused)")


def test_the_keyboard_alone(page: Page) -> None:
    page.run("document.getElementById('list').focus()")
    for key in ("End", "ArrowUp", "Enter"):
        page.press(key)
    page.wait("document.querySelector('#episode article table')")
    assert page.run("document.querySelector('.row[aria-selected=true]').ariaRowIndex") == "52"
    assert page.run("document.getElementById('list').getAttribute('aria-activedescendant')") == "row50"
    page.press("Home")
    page.wait("document.querySelector('#episode h2').textContent === 'task 0'")
    page.press("Escape")
    assert page.run("document.getElementById('episode').hidden")
    assert page.run("document.activeElement.id") == "list"
    page.press("/")
    assert page.run("document.activeElement.name") == "words"


def test_an_address_leads_to_an_episode_and_its_filters(page: Page, folder: Path) -> None:
    choose(page, "cell", "libero_pro/goal_task")
    choose(page, "sort", "-init")
    page.run("document.querySelectorAll('.row')[2].click()")
    page.wait("document.querySelector('#episode article table')")
    address, shown = page.run("[location.hash, document.querySelector('#episode').innerText]")
    _open(page, folder, address)
    page.wait("document.querySelector('#episode article table')")
    assert page.run("document.querySelector('#episode').innerText") == shown
    assert (status(page), page.run("document.forms.filters.sort.value")) == ("24 of 52 episodes", "-init")
    key = "two/libero_pro/goal_pos/task_3/init2/seed7/default"
    page.run(f"location.hash = '#episode={quote(key, safe='')}'")
    page.wait(f"document.querySelector('#episode').innerText.includes({json.dumps(key)})")
    assert status(page) == "52 of 52 episodes"
    _open(page, folder, "#cell=nothing&run=__proto__&episode=x&sort=constructor")
    assert status(page) == "0 of 52 episodes"


def test_hostile_text_is_text(page: Page) -> None:
    choose(page, "words", "onerror")
    page.run("document.querySelector('.row').click()")
    page.wait("document.querySelector('#episode article table')")
    shown = page.run("document.querySelector('#episode').textContent")
    assert shown.count("<img src=x onerror='window.broken=1'>") >= 6
    assert page.run("document.querySelectorAll('img, body script:not([src])').length") == 0
    page.run(
        "Promise.resolve(document.body.append(Object.assign(document.createElement('p'), {innerHTML: ''})))"
    )


@pytest.mark.parametrize("width", [390, 800, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_every_width_and_both_colours(page: Page, width: int, dark: bool) -> None:
    page.size(width, dark=dark)
    wide = "document.documentElement.scrollWidth <= innerWidth"
    page.wait(wide)
    assert rows(page, "task")
    assert page.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(22, 22, 22)" if dark else "rgb(255, 255, 255)"
    )
    choose(page, "task", "filmed")
    page.run("document.querySelector('.row').click()")
    page.wait("document.querySelector('#episode article table')")
    page.wait(wide)
    assert page.run(
        "document.getElementById('episode').scrollWidth <= document.getElementById('episode').clientWidth"
    )
    small = "[...document.querySelectorAll('#episode svg text')].every((t) => t.getBoundingClientRect().height > 9)"
    assert page.run(small)
    page.press("Escape")
    assert page.pdf().startswith(b"%PDF")


def test_new_records_appear_while_a_run_goes_on(tab: Page, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lambda c, t, i: True, {"goal_pos": 2}, tasks=2)
    server = PageServer(0)
    server.start(Pages([str(run)], tmp_path / "view").answer)
    tab.errors.clear()
    tab.requests.clear()
    tab.size(1400)
    tab.open(server.address)
    tab.wait(READY)
    assert status(tab) == "4 of 4 episodes · live: 4 of 4 requested episodes are recorded"
    add(run, record("goal_pos", "brand_new", 0, False))
    tab.wait("document.querySelectorAll('.row').length === 5")
    assert status(tab) == "5 of 5 episodes · live: 5 of 5 requested episodes are recorded"
    choose(tab, "outcome", "timeout")
    tab.run("document.querySelector('.row').click()")
    tab.wait("document.querySelector('#episode article table')")
    assert "brand new" in tab.run("document.querySelector('#episode').innerText")
    assert tab.errors == []
    assert all(address.startswith((server.address, "data:")) for address in tab.requests)
    server.stop()
    tab.wait("document.getElementById('status').textContent.includes('does not answer')")


def seconds(tab: Page) -> float:
    """Processor time that the page has used, which other processes on the machine do not change."""
    metrics = tab.call("Performance.getMetrics")["metrics"]
    return next(m["value"] for m in metrics if m["name"] == "TaskDuration")


@pytest.mark.parametrize(
    ("each", "opens", "filters"), [(250, 0.5, 0.1), pytest.param(2500, 2, 0.2, marks=pytest.mark.slow)]
)
def test_many_episodes_open_and_filter_quickly(
    tab: Page, tmp_path: Path, each: int, opens: float, filters: float
) -> None:
    """40 times `each` episodes, opened and filtered in these seconds, without the time that other processes take."""
    cells = {"goal_pos": each, "goal_task": each}
    one = write_run(tmp_path / "one", lambda c, t, i: i % 3 > 0, cells)
    two = write_run(tmp_path / "two", lambda c, t, i: i % 5 > 0, cells)
    write_browser(load_runs([f"one={one}", f"two={two}"]), tmp_path / "out", "many")
    tab.size(1400)
    tab.call("Performance.enable", timeDomain="threadTicks")
    tab.open("about:blank")
    before = seconds(tab)
    _open(tab, tmp_path)
    opening = seconds(tab) - before
    assert status(tab) == f"{40 * each:,} of {40 * each:,} episodes"
    changes = [("task", "task_3"), ("task", ""), ("outcome", "timeout"), ("sort", "-steps"), ("words", "task 1"),
               ("words", ""), ("a", "one|own instruction"), ("b", "two|own instruction"), ("differ", True)]  # fmt: skip
    filtering = []
    for name, value in changes:
        before = seconds(tab)
        choose(tab, name, value)
        tab.run("document.body.offsetHeight")
        filtering.append((round(seconds(tab) - before, 3), name, value))
    print(f"opened in {opening:.2f} s; filtered in {filtering}")
    assert in_time(opening, opens)
    assert in_time(max(filtering)[0], filters), filtering
