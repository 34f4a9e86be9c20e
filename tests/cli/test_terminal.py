"""On a terminal of 80 columns: lines fit and end between words, steps are named, and NO_COLOR means no escape."""

from __future__ import annotations

import io
import re
import threading
import time

import pytest

from apt_bench.cli import VERBS
from apt_bench.cli._grid import Grid
from apt_bench.core import status as status_module
from apt_bench.core.status import name_step, status
from apt_bench.core.text import PlainConsole, plain_console, say, wrapped
from tests.cli.terminal import in_terminal

RUN = ["run", "--suite", "tests/toy_suite.yaml", "--episodes", "2", "--workers", "0", "--cells", "push,slide"]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[list[object]]:
    """Every verb that prints more than a help text without a simulator, and the help of the others."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "a").mkdir()
    a, b = folder / "one", folder / "another"
    shown: list[list[object]] = [
        [*RUN, "--policy", "tests.toy:PushPolicy", "--probe", "null", "--out", a],
        [*RUN, "--policy", "tests.toy:PushPolicy", "--policy-arg", "noise=3.0", "--out", b],
        [*RUN, "--policy", "zeero"],
        ["watch", a],
        ["ls", "suites"],
        ["ls", "tasks", "--suite", "tests/toy_suite.yaml"],
        ["ls", "policies"],
        ["ls", "runs", "--path", folder],
        ["compare", a, b],
        ["check", b, "--against", a],
        ["report", b, "--out", folder / "report"],
        ["power", "50", "60"],
        ["probe", "--suite", "tests/toy_suite.yaml", "--policy", "tests.toy:PushPolicy", "--cells", "push"],
        ["validate", "--suite", "rigid_pick_place"],
        ["doctor", "--quick", "--suite", "tests/toy_suite.yaml"],
    ]
    return shown + [[verb, "--help"] for verb in VERBS]


def test_no_color_means_no_escape_at_all(commands: list[list[object]]) -> None:
    said = in_terminal(commands, environment={"NO_COLOR": "1"})
    assert "\x1b" not in said
    assert all(f"$ {verb} " in said for verb in VERBS)
    assert "exit code 70" not in said
    assert "internal error" not in said
    assert re.search(r"^Reading two runs \.\.\.$", said, re.M)  # steps are named in lines


def test_lines_fit_and_words_stay_whole(commands: list[list[object]]) -> None:
    said = in_terminal(commands)
    assert "exit code 70" not in said
    escapes = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
    lines = [escapes.sub("", line).split("\r")[-1] for line in said.split("\n")]
    lines = [line.rstrip() for line in lines if not line.startswith("$ ")]
    long = [line for line in lines if len(line) > 80 and " " in line.strip()]
    assert long == []
    text = " ".join(" ".join(lines).split())
    for sentence in (
        "Success in %, difference A minus B in points with its 95% interval.",
        "Compare the probes with this figure.",
        "apt-bench: No policy 'zeero'. Did you mean 'zero'?",
    ):
        assert sentence in text


def test_a_step_is_drawn_and_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name in ("LIVE_AFTER", "PLAIN_AFTER"):
        monkeypatch.setattr(status_module, name, 0.0)
    monkeypatch.setattr(status_module, "TICK", 0.01)
    with status("Outer\x1b"):
        with status("Inner") as step:
            _wait_for("Inner (0 s)", err)
            step("Next")
            _wait_for("Next (0 s)", err)
        _wait_for("Outer? (0 s)", err)
        say("a message")
        assert err.getvalue().split("\r\x1b[2K")[-1] == "apt-bench: a message\n"
    assert err.getvalue().endswith(("\r\x1b[2K", "a message\n"))
    assert out.getvalue() == ""
    assert not [t for t in threading.enumerate() if t.name == "status" and _lives(t)]


@pytest.mark.parametrize("colour", [True, False])
def test_a_count_is_shown_although_each_number_is_short(
    monkeypatch: pytest.MonkeyPatch, colour: bool
) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False) if colour else monkeypatch.setenv("NO_COLOR", "1")
    for name in ("LIVE_AFTER", "PLAIN_AFTER"):
        monkeypatch.setattr(status_module, name, 0.2)
    monkeypatch.setattr(status_module, "TICK", 0.01)
    with status("Reading runs"):
        for number in range(1, 21):
            name_step(f"Reading run {number} of 20")
            time.sleep(0.05)
    shown = re.findall(r"Reading run (\d+) of 20", err.getvalue())
    assert len(set(shown)) > 1
    if not colour:
        assert len(shown) < 20
        assert err.getvalue().count("\n") == len(shown)
    name_step("there is no block, so nothing is shown")


def test_elsewhere_only_a_log_names_the_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status_module, "PLAIN_AFTER", 0.0)
    monkeypatch.setattr(status_module, "TICK", 0.01)
    lines: list[str] = []
    with status("Unseen"):
        time.sleep(0.1)
    with status("Outer", lines.append), status("Starting Ray"):
        time.sleep(0.1)
    assert lines == ["Starting Ray ..."]
    assert capsys.readouterr() == ("", "")


def test_a_grid_wraps_between_words_and_cuts_nothing() -> None:
    grid = Grid("name", "what it is", left=2)
    grid.add(
        "results/runs/rigid_pick_place-openvla_oft-1234abcd", "a run with a rather long description of it"
    )
    grid.add("short")
    file = io.StringIO()
    PlainConsole(file=file, width=40).print(grid)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    columns = lines[0].index("what")
    assert (
        "".join(line[:columns].strip() for line in lines[1:-1])
        == "results/runs/rigid_pick_place-openvla_oft-1234abcd"
    )
    assert " ".join(line[columns:].strip() for line in lines[1:-1]).split() == (
        ["a", "run", "with", "a", "rather", "long", "description", "of", "it"]
    )


def test_a_console_wraps_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a sentence with an /absurdly/long/path/that/fits/nowhere/at/all in it"
    assert wrapped(text, 24).split("\n") == [
        "a sentence with an",
        "/absurdly/long/path/that/fits/nowhere/at/all",
        "in it",
    ]
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setenv("NO_COLOR", "1")
    file = Terminal()
    plain_console(file).print(text, soft_wrap=True)
    assert file.getvalue() == wrapped(text, 24) + "\n"
    pipe = io.StringIO()
    plain_console(pipe).print(text * 50, soft_wrap=True)
    assert pipe.getvalue() == text * 50 + "\n"


def _wait_for(text: str, stream: io.StringIO) -> None:
    end = time.monotonic() + 20
    while text not in stream.getvalue():
        assert time.monotonic() < end, stream.getvalue()
        time.sleep(0.01)


def _lives(thread: threading.Thread) -> bool:
    thread.join(5)
    return thread.is_alive()
