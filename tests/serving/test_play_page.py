"""The page of `apt-bench play` in Chromium, with the shipped policy on the tabletop."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from apt_bench.policies.registry import find_policy
from apt_bench.serving.play import Limits, Play
from apt_bench.serving.view import PageServer
from tests.chromium import LONG, Page, chromium
from tests.clock import in_time
from tests.serving.play_reader import children

pytestmark = pytest.mark.sim

HOSTILE = "<img src=x onerror='window.broken=1'> to the </option><script>window.broken=1</script>"
IDLE = "document.body && document.body.dataset.phase === 'ready' && document.body.dataset.running === 'false'"
RAN = "sides.length && sides.every((side) => side.end)"


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(temporary: Path) -> Iterator[PageServer]:
    play = Play(find_policy("apt"), Limits(steps=24))
    found = PageServer(0)
    found.start(play.answer, play.post)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))  # of the worker
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
        "[...document.querySelectorAll('.views')].map((v) => v.getBoundingClientRect()).map((r) => [r.left, r.top])"
    )
    assert left[0] < right[0]
    assert left[1] == right[1]  # although the second sentence and its note are longer
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


@pytest.mark.parametrize(
    ("sentence", "unknown"),
    [
        ("", ""),
        ("Move the toothpaste to the bowl.", ""),
        ("Florbl the wug to the plate", "florbl, wug"),
        ("Bewege die Kugel auf den Teller.", "bewege, die, kugel, auf, den, teller"),
        ("🥫 → 🍽️!", "🥫, →, 🍽️"),
        ("把紫色的球放到盘子上", "把紫色的球放到盘子上"),
        ("ضع العلبة في الوعاء", "ضع, العلبة, في, الوعاء"),
        (HOSTILE, "img, src, x, onerror, window, broken, 1, option, script"),
    ],
)
def test_any_sentence_runs_and_unknown_words_are_named(page: Page, sentence: str, unknown: str) -> None:
    write(page, "a", sentence)
    run(page)
    quote = "document.querySelector('blockquote')"
    assert page.run(f"{quote}.textContent") == (sentence or "(no instruction: the sentence is empty)")
    assert page.run(f"{quote}.matches(':dir(rtl)')") == sentence.startswith("ض")
    note = "document.querySelector('.unknown')"
    assert page.run(f"{note}.hidden") == (not unknown)
    if unknown:
        assert text(page, ".unknown").startswith(f"Not in the policy's vocabulary: {unknown}. It reads")
    assert page.run("sides[0].end.steps") == 24


@pytest.mark.parametrize(
    ("sentence", "message"),
    [("x" * 10_000, "has 10000 characters"), ("Move it\u202e to the plate.", "a control character")],
)
def test_a_refused_sentence_stays_in_its_field(page: Page, sentence: str, message: str) -> None:
    job = page.run("head.job")
    write(page, "a", sentence)
    page.press("Enter")
    page.wait(f"document.getElementById('status').textContent.includes('{message}')")
    assert (page.run("a.value"), page.run("head.job")) == (sentence, job)


def test_lines_become_one_line(page: Page) -> None:
    write(page, "a", "Move the purple sphere\nto the plate.\n")
    run(page)
    assert text(page, "blockquote") == "Move the purple sphere to the plate."


def test_a_sentence_that_is_too_long_for_the_network(page: Page) -> None:
    job = page.run("head.job")
    write(page, "a", "the can " * 60)
    page.press("Enter")
    page.wait(f"head.job > {job} && {IDLE}", 4 * LONG)
    assert "the mini VLM accepts at most 96" in text(page, ".result .fault")
    write(page, "a", "Move the purple sphere to the plate.")
    run(page)
    assert page.run("document.querySelectorAll('.fault').length") == 0


def test_the_page_names_the_end_of_the_process_and_runs_again(page: Page, server: PageServer) -> None:
    job = page.run("head.job")
    page.press("Enter")
    page.wait(f"head.job > {job} && sides[0]?.frames.length", 4 * LONG)
    (worker,) = children(os.getpid())
    os.kill(worker, signal.SIGKILL)
    page.wait("head.phase === 'loading'")
    notice = "The worker process was ended by signal 9 (Killed). The system does so when memory runs out. It is being "
    assert text(page, "#notice") == f"{notice}started again. Then press Run again."
    assert text(page, "#status").startswith("Starting the worker process ...")
    assert page.run("[get('run').disabled, get('stop').disabled].join()") == "true,true"
    page.wait(IDLE, 4 * LONG)
    assert text(page, "#notice").endswith("It has been started again. Press Run again.")
    page.run("a.focus()")
    run(page)
    assert page.run("notice.hidden")
    assert page.run("sides[0].end.steps") == 24
    assert children(os.getpid()) != [worker]


def test_four_decisions_a_second_need_one_core(page: Page) -> None:
    """CPU time of the server and of the worker per decision. The server is in this process, with the test."""

    def seconds() -> float:
        (worker,) = children(os.getpid())
        stat = Path(f"/proc/{worker}/stat").read_text().rpartition(") ")[2].split()
        own = resource.getrusage(resource.RUSAGE_SELF)
        return own.ru_utime + own.ru_stime + sum(map(int, stat[11:13])) / os.sysconf("SC_CLK_TCK")

    page.run("a.focus()")
    run(page)  # makes the scene
    before = seconds()
    run(page)
    decisions = page.run("sides[0].end.decisions")
    assert decisions == 3
    assert in_time((seconds() - before) / decisions, 0.25)


def test_a_libero_scene(page: Page) -> None:
    def choose(*names: str) -> None:
        job = page.run("head.job")
        for select, name in zip(("suite", "cell", "task"), names, strict=True):
            page.run(f"choices(); {select}.value = '{name}'")
        page.run("task.dispatchEvent(new Event('change', {bubbles: true}))")
        page.wait(f"head.job > {job} && {IDLE} && sides[0]?.frames.length", 4 * LONG)

    choose("libero_pro", "object_task", "pick_up_the_milk_and_place_it_in_the_basket")
    assert page.run("task.selectedOptions[0].text") == page.run("a.value")
    assert page.run("a.value") == "pick the butter and place it in the basket"
    assert {"butter", "milk", "basket"} <= set(
        text(page, "#objects").removesuffix(".").split(": ")[1].split(", ")
    )
    page.run("two.click()")
    write(page, "b", "pick the milk and place it in the basket")
    run(page)
    assert page.run("sides.map((s) => s.frames.map((f) => f.step).join()).join(' ')") == "0,8,16,24 0,8,16,24"
    first, last = page.run("[0, 3].map((n) => sides.map((s) => s.frames[n].images.agentview))")
    assert first[0] == first[1]
    assert last[0] != last[1]  # the instruction is the only difference
    assert page.run("[...document.querySelectorAll('img')].every((i) => i.naturalWidth === 256)")
    assert "Goal of the task (butter in basket)\nnot reached" in text(page, ".result")
    assert "No: the milk did not come to rest on or in the basket." in text(
        page, "article:last-child .result"
    )
    page.run("two.click()")
    choose("rigid_pick_place", "so", "to_plate")


@pytest.mark.slow
def test_two_hundred_instructions_leak_nothing(page: Page, temporary: Path) -> None:
    """Memory in MiB of the worker, of the server with this test, and of the page's JavaScript; then threads, open files
    and temporary files."""

    def used() -> tuple[list[float], list[int]]:
        (worker,) = children(os.getpid())
        places = [Path(f"/proc/{pid}") for pid in (worker, os.getpid())]
        page.requests[:] = [r for r in page.requests if not r.startswith("data:")]  # 20 kB for each image
        page.call("HeapProfiler.collectGarbage")
        memory = [int((p / "status").read_text().partition("VmRSS:")[2].split()[0]) / 2**10 for p in places]
        memory.append(page.call("Runtime.getHeapUsage")["usedSize"] / 2**20)
        counts = [len(os.listdir(p / part)) for p in places for part in ("task", "fd")]
        return memory, [worker, *counts, len(list(temporary.rglob("*")))]

    sentences = [
        "Move the purple sphere to the plate.",
        "Move the blue can to the bowl.",
        "Sing.",
        "",
        HOSTILE,
    ]
    found = []
    for number in range(220):
        if number in (20, 120):
            found.append(used())
        write(page, "a", sentences[number % len(sentences)])
        run(page)
    found.append(used())
    print(*found, sep="\n")
    assert found[0][1] == found[1][1] == found[2][1]
    for before, half, after in zip(*(memory for memory, _ in found), strict=True):
        assert half - before < 40
        assert after - half < 20


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
