"""The report as a folder, and the commands on damaged and unusual files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import add, record, write_run
from typer.testing import CliRunner, Result

from apt_bench.analysis.run import load_run, load_runs
from apt_bench.cli import build
from apt_bench.cli.report import expand
from apt_bench.core.errors import UserError
from apt_bench.reporting.report import write_report, write_tables
from apt_bench.runs.records import EpisodeRecord
from tests.clock import in_time


def call(*arguments: object) -> Result:
    return CliRunner().invoke(build(), [str(a) for a in arguments])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs, one with a video, one with an error."""
    folder = tmp_path_factory.mktemp("report")
    first = write_run(folder / "first", lambda c, t, i: i < 3, {"goal_pos": 4, "goal_task": 4})
    second = write_run(folder / "second", lambda c, t, i: i < 2, {"goal_pos": 4, "goal_task": 4})
    (first / "videos").mkdir()
    pixels = "color=c=red:s=64x64:d=0.5"
    import imageio_ffmpeg

    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run(
        [ffmpeg, "-v", "error", "-f", "lavfi", "-i", pixels, str(first / "videos/a.mp4")], check=True
    )
    events = {"targets": ["cup"], "touched": {"cup": 3}, "goal": {"on(cup, plate)": {}}}
    add(first, record("goal_pos", "task_0", 0, True, video="videos/a.mp4", events=events))
    add(
        second, record("goal_pos", "new", 0, False, outcome="error", failure=None, error="<b>lost</b> & gone")
    )
    return write_report(load_runs([f"one={first}", f"two={second}"]), folder / "out").parent


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if k in ("src", "href") and v]
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_needs_no_network(report: Path) -> None:
    text = (report / "report.html").read_text()
    page = Links()
    page.feed(text)
    assert page.open == []
    assert not re.search(r"(src|href)=.?https?:|url\((?!#)|@import|<script", text)
    local = [x for x in page.links if not x.startswith(("data:", "#"))]
    assert len(local) > 20
    assert all((report / x).is_file() for x in local)
    anchors = {x[1:] for x in page.links if x.startswith("#")}
    ids = re.findall(r' id="([\w-]+)"', text)
    assert len(set(ids)) == len(ids)
    assert anchors <= set(ids)
    assert {i for i in ids if re.match(r"term-", i)} | set(
        re.findall(r'<section id="(\w+)"', text)
    ) <= anchors
    assert "&lt;b&gt;lost&lt;/b&gt; &amp; gone" in text
    assert "data:image/jpeg" in text  # the video's poster
    assert [p.name for p in (report / "videos").iterdir()] == ["01_a.mp4"]


def test_tables_and_figures_in_every_format(report: Path) -> None:
    names = {p.stem for p in (report / "tables").iterdir()}
    assert {"libero_pro", "coverage", "tasks", "outcomes", "throughput", "card_protocol", "errors"} <= names
    for name in names - {"missing"}:
        assert all((report / "tables" / f"{name}.{kind}").stat().st_size for kind in ("csv", "md"))
        in_a_paper = not name.startswith(("card_", "errors"))
        assert (report / "tables" / f"{name}.tex").is_file() == in_a_paper
    for figure in {p.stem for p in (report / "figures").iterdir()}:
        assert not (report / "figures" / f"{figure}.pdf").exists()
        magic = {"png": b"\x89PNG", "svg": b"<?xml"}
        for kind, start in magic.items():
            assert (report / "figures" / f"{figure}.{kind}").read_bytes().startswith(start)


def test_report_verb(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", lambda c, t, i: True, {"goal_pos": 2})
    done = call("report", tmp_path / "runs" / "a")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "runs" / "a" / "report" / "report.html").is_file()
    assert "| APT (Ft VLM) † |" in done.output
    with pytest.raises(UserError, match="holds no run"):
        raise call("report", tmp_path / "nowhere").exception  # type: ignore[misc]
    with pytest.raises(UserError, match="Cannot write"):
        raise call("report", tmp_path / "runs", "--out", "/proc/none").exception  # type: ignore[misc]


def test_report_writes_into_the_run_whatever_its_folder_is_called(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a=b", lambda c, t, i: True, {})
    (tmp_path / "b").mkdir()
    done = call("report", path)
    assert done.exit_code == 0, done.output
    assert (path / "report" / "report.html").is_file()
    assert done.output.splitlines()[-1] == str(path / "report" / "report.html")
    assert list((tmp_path / "b").iterdir()) == []


def test_a_folder_of_runs_with_a_link_to_one_of_them_has_it_once(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs" / "one", lambda c, t, i: True, {})
    (tmp_path / "runs" / "latest").symlink_to(path)
    assert len(load_runs(expand(str(tmp_path / "runs")))) == 1
    with pytest.raises(UserError, match="given twice"):
        load_runs([*expand(str(tmp_path / "runs")), *expand(str(path))])


def test_empty_run_says_so(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", lambda c, t, i: True, {})
    text = write_report([load_run(path)], tmp_path / "out").read_text()
    assert "no episode was requested and none is recorded" in text
    (path / "episodes.jsonl").unlink()
    assert len(load_run(path).frame) == 0


def test_check_verb_exit_codes_and_files(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", lambda c, t, i: i < 16, {"goal_pos": 20})
    same = write_run(tmp_path / "same", lambda c, t, i: i < 16, {"goal_pos": 20})
    worse = write_run(tmp_path / "worse", lambda c, t, i: i < 10, {"goal_pos": 20})
    small = write_run(tmp_path / "small", lambda c, t, i: i < 16, {"goal_pos": 2})
    for run, code in [(same, 0), (worse, 1), (small, 3)]:
        assert call("check", run, "--against", base).exit_code == code
    junit, summary = tmp_path / "deep" / "j.xml", tmp_path / "s.md"
    call("check", worse, "--against", base, "--junit", junit, "--summary", summary)
    assert "<failure" in junit.read_text()
    assert "regressed" in summary.read_text()
    done = call("compare", worse, base, "--out", tmp_path / "cmp", "--tasks")
    assert done.exit_code == 0
    assert "B better" in done.output
    assert (tmp_path / "cmp" / "figures" / "compare.svg").is_file()


def test_power_verb() -> None:
    assert "168" in call("power", 50, 40, "--discordance", 20).output
    assert "388" in call("power", 50, 40).output
    assert "94.1%" in call("power", 50, 45, "--episodes", 500, "--discordance", 10).output
    assert "79.9%" in call("power", 60, 60, "--discordance", 20, "--margin", 5, "--episodes", 500).output
    assert ": 454" in call("power", 60, 60, "--discordance", 10, "--margin", 5, "--power", 95).output
    for bad in (
        ["50", "50"],
        ["50", "40", "--margin", "5"],
        ["50", "140"],
        ["50", "40", "--discordance", "5"],
        ["50", "40", "--episodes", "0"],
    ):
        assert isinstance(call("power", *bad).exception, UserError)


GOOD = record("goal_pos", "task_0", 0, True)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(list(json.loads(GOOD.to_json())))
keys = st.sampled_from(["suite", "cell", "task", "init", "seed", "prompt", "other"])
events = st.sampled_from(["targets", "touched", "grasped", "goal", "base_goal", "shortcut", "scores"])


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A record with something changed, or no record at all."""
    raw: dict[str, Any] = json.loads(GOOD.to_json())
    kind = draw(st.sampled_from(["field", "key", "events", "missing", "bytes", "json"]))
    if kind == "field":
        raw[draw(fields)] = draw(anything)
    elif kind == "key":
        raw["key"][draw(keys)] = draw(anything)
    elif kind == "events":
        raw["events"] = {draw(events): draw(anything), draw(events): draw(anything)}
    elif kind == "missing":
        del raw[draw(fields)]
    elif kind == "bytes":
        return draw(st.binary(max_size=40)).replace(b"\n", b"")
    else:
        return json.dumps(draw(anything)).encode()
    return json.dumps(raw).encode()


def readable(line: bytes) -> bool:
    try:
        EpisodeRecord.from_json(line.decode())
    except ValueError:
        return False
    return True


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(lines(), min_size=1, max_size=4))
def test_no_line_crashes_or_vanishes(tmp_path: Path, changed: list[bytes]) -> None:
    """A file with a damaged line is refused with its number; any other gives every key it holds, and a report."""
    path = tmp_path / "run"
    if not path.exists():
        write_run(path, lambda c, t, i: True, {"goal_pos": 1})
    whole = [r.to_json().encode() for r in (record("goal_pos", f"t{i}", 0, i > 1) for i in range(3))]
    (path / "episodes.jsonl").write_bytes(b"".join(x + b"\n" for x in [*whole, *changed]))
    if all(map(readable, changed)):
        run = load_run(path)
        wanted = {EpisodeRecord.from_json(x.decode()).key for x in [*whole, *changed]}
        assert len(run.frame) + len(run.probed) == len(wanted)
        write_tables([run], tmp_path / "out")  # figures are drawn once below: seconds each
    else:
        bad = next(i for i, x in enumerate(changed) if not readable(x))
        with pytest.raises(UserError, match=f"line {4 + bad},"):
            load_run(path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "policy",
                "requested",
                "requested_probes",
                "unavailable",
                "wall_seconds",
                "started",
                "sequential",
            ]
        ),
        anything,
    ),
    st.dictionaries(st.sampled_from(["suite", "seed", "cells", "hash"]), anything),
)
def test_strange_cards_do_not_crash(tmp_path: Path, info: dict[str, Any], protocol: dict[str, Any]) -> None:
    path = tmp_path / "run"
    if not path.exists():
        write_run(path, lambda c, t, i: True, {"goal_pos": 1}, tasks=1)
    (path / "run.json").write_text(json.dumps(info))
    (path / "protocol.json").write_text(json.dumps(protocol))
    try:
        runs = [load_run(path)]
    except UserError as error:
        refused = str(error)
    else:
        write_tables(runs, tmp_path / "out")
        return
    assert "is damaged" in refused  # which file, and in it which entry


def test_names_with_any_character_are_drawn_and_stay_in_the_folder(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {})
    add(path, record("c$el_{l", "t\\frac{<i>", 0, True, suite="../../evil", policy="$\x07é漢"))
    out = tmp_path / "deep" / "out"
    write_report([load_run(path)], out)
    assert {p.name for p in tmp_path.iterdir()} == {"run", "deep"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_torn_last_line_is_ignored_and_a_retry_counts_once(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {"goal_pos": 2})
    add(path, record("goal_pos", "task_0", 0, False))  # a later line of the same key counts
    with open(path / "episodes.jsonl", "a") as file:
        file.write('{"key": {"suite"')
    run = load_run(path)
    assert (len(run.frame), int(run.frame.success.sum())) == (20, 19)


@pytest.mark.parametrize(("each", "bound"), [(500, 8), pytest.param(5000, 20, marks=pytest.mark.slow)])
def test_ten_and_a_hundred_thousand_episodes_take_seconds(tmp_path: Path, each: int, bound: float) -> None:
    """`bound`: seconds of processor time, in a process of its own, which takes 1.5 GB at most."""
    path = write_run(tmp_path / "run", lambda c, t, i: i % 3 > 0, {"goal_pos": each, "goal_task": each})
    script = (
        "import re, sys, time; from apt_bench.cli import build; "
        "build()(['report', *sys.argv[1:]], standalone_mode=False); "
        # `ru_maxrss` would also count the process that started this one.
        "print(time.process_time(), re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    seconds, kilobytes = map(float, done.stdout.splitlines()[-1].split())
    assert in_time(min(seconds, time.perf_counter() - start), bound)
    assert kilobytes < 1.5e6
