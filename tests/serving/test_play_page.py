"""The page of `apt-bench play` in Chromium, with the shipped policy on the tabletop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from apt_bench.policies.registry import find_policy
from apt_bench.serving.play import Limits, Play
from apt_bench.serving.view import PageServer
from tests.chromium import LONG, Page, chromium

pytestmark = pytest.mark.sim

HOSTILE = "<img src=x onerror='window.broken=1'> to the </option><script>window.broken=1</script>"
IDLE = "document.body && document.body.dataset.phase === 'ready' && document.body.dataset.running === 'false'"
RAN = "sides.length && sides.every((side) => side.end)"


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    play = Play(find_policy("apt"), Limits(steps=24))
    found = PageServer(0)
    found.start(play.answer, play.post)
    play.start()
    yield found
    play.close()
    found.stop()


@pytest.fixture(scope="module")
def tab(server: PageServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    profile = tmp_path_factory.mktemp("profile")
    with chromium(profile) as found:
        found.open(server.address)
        found.wait("document.body && document.body.dataset.phase", LONG)  # before the policy is loaded
        yield found
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture
def page(server: PageServer, tab: Page) -> Iterator[Page]:
    """The page with a scene, ready to run. No error, and no request to another place, at the end."""
    tab.size(1400)
    tab.wait(f"{IDLE} && sides[0]?.frames.length", 4 * LONG)
    yield tab
    assert tab.errors == []
    own = [address for address in tab.requests if not address.startswith("data:")]
    assert all(address.startswith(f"{server.address}/") for address in own)
    assert tab.run("window.broken") is None


def write(page: Page, field: str, sentence: str) -> None:
    page.run(f"document.getElementById('{field}').focus(); document.getElementById('{field}').select()")
    page.call("Input.insertText", text=sentence)


def text(page: Page, selector: str) -> str:
    return page.run(f"document.querySelector({json.dumps(selector)}).innerText")


def run(page: Page) -> None:
    """Press Enter and wait for the end."""
    job = page.run("head.job")
    page.press("Enter")
    page.wait(f"head.job > {job} && {IDLE} && {RAN}", 4 * LONG)


def test_a_typed_sentence_runs(page: Page) -> None:
    assert (
        page.run("[suite.value, cell.value, task.value, init.value].join()")
        == "rigid_pick_place,so,to_plate,0"
    )
    assert page.run("a.value") == "Move the purple sphere to the plate."
    assert (
        text(page, "#objects")
        == "In this scene: purple ball, yellow bottle, toothpaste, blue can, plate, bowl."
    )
    write(page, "a", "Move the blue can to the bowl.")
    run(page)
    assert text(page, "blockquote") == "Move the blue can to the bowl."
    assert page.run("sides[0].frames.map((f) => f.step)") == [0, 8, 16, 24]
    assert page.run("new Set(sides[0].frames.map((f) => f.images.agentview)).size") == 4
    assert page.run("[...document.querySelectorAll('img')].every((i) => i.naturalWidth === 256)")
    result = text(page, ".result")
    assert "No: the blue can did not come to rest on or in the bowl." in result
    assert "Goal of the task (purple ball on plate)\nnot reached" in result
    assert "at step 24 of 24, after 3 decisions" in result


def test_earlier_decisions_can_be_seen_again(page: Page) -> None:
    run(page)
    last = page.run("document.querySelector('img').src")
    page.run("moment.focus()")
    page.press("Home")
    page.wait("moment.value === '0'")
    assert text(page, ".caption").startswith("Step 0 of 24;")
    assert page.run("document.querySelector('img').src") != last
    page.press("End")
    page.wait("moment.value === moment.max")
    assert page.run("document.querySelector('img').src") == last


def test_two_sentences_side_by_side(page: Page) -> None:
    page.run("two.focus()")
    page.press(" ")
    assert page.run("b.value") == "Move the yellow bottle to the plate."
    write(page, "b", HOSTILE)
    run(page)
    assert page.run("[...document.querySelectorAll('blockquote')].map((q) => q.textContent)")[1] == HOSTILE
    left, right = page.run(
        "[...document.querySelectorAll('article')].map((a) => a.getBoundingClientRect().left)"
    )
    assert left < right
    assert "Cannot tell" in text(page, "article:last-child .result")
    assert page.run("sides[0].frames[0].images.agentview === sides[1].frames[0].images.agentview")
    page.run("two.focus()")
    page.press(" ")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_every_width(page: Page, width: int, dark: bool) -> None:
    page.size(width, 900, dark)
    page.wait(f"innerWidth === {width}")
    assert page.run("document.documentElement.scrollWidth") <= width
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 22, 22)" if dark else "rgb(255, 255, 255)")
    wide = page.run(
        "Math.max(...[...document.querySelectorAll('form *')].map((e) => e.getBoundingClientRect().right))"
    )
    assert wide <= width


def test_another_scene_is_shown_with_its_sentence(page: Page) -> None:
    job = page.run("head.job")
    page.run("cell.value = 'uo'; cell.dispatchEvent(new Event('change', {bubbles: true}))")
    page.wait(f"head.job > {job} && {IDLE} && sides[0]?.frames.length", 4 * LONG)
    first = page.run("a.value")
    page.run("init.focus()")
    page.press("ArrowUp")
    page.press("Enter")  # commits the number and runs
    page.wait(f"init.value === '1' && {IDLE} && a.value !== {json.dumps(first)}", 4 * LONG)


def test_a_mistake_is_named_on_the_page(page: Page) -> None:
    write(page, "a", "x" * 501)
    page.press("Enter")
    page.wait("document.getElementById('status').textContent.includes('501 characters')")
    write(page, "a", "fine")
    run(page)
    assert text(page, "#status") == "Ready. The policy is apt."


def test_a_reload_keeps_the_episode_and_the_choices(page: Page) -> None:
    job = page.run("head.job")
    page.run("cell.value = 'uo'; cell.dispatchEvent(new Event('change', {bubbles: true}))")
    page.wait(f"head.job > {job} && {IDLE} && sides[0]?.frames[0]?.sentence === a.value", 4 * LONG)
    write(page, "a", "Move the sky to the plate.")
    job = page.run("head.job")
    page.press("Enter")
    page.wait(f"head.job > {job}", 4 * LONG)
    page.run("window.old = true")
    page.call("Page.reload")
    page.wait(f"!window.old && {IDLE} && {RAN}", 4 * LONG)
    assert page.run("head.job") == job + 1
    assert page.run("[suite.value, cell.value, a.value].join()") == (
        "rigid_pick_place,uo,Move the sky to the plate."
    )
    assert page.run("sides[0].end.steps") == 24


def test_escape_stops(page: Page) -> None:
    job = page.run("head.job")
    page.press("Enter")
    page.press("Escape")
    page.wait(f"head.job >= {job} && {IDLE}", 4 * LONG)


def test_keys_reach_every_control(page: Page) -> None:
    page.wait(IDLE, 4 * LONG)
    page.run("a.focus()")
    run(page)  # the slider exists once there are two images
    page.wait("!document.getElementById('time').hidden")
    page.run("document.activeElement.blur()")
    reached = []
    for _ in range(12):
        page.press("Tab")
        reached.append(page.run("document.activeElement.id"))
    assert {"suite", "cell", "task", "init", "a", "two", "run", "moment"} <= set(reached)
