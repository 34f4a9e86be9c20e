"""Exit codes: there is never a traceback, and only a verdict has the exit code of a verdict."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apt_bench.cli import build, crashed

ROOT = Path(__file__).parents[2]
WORDS = [sys.executable, "-m", "apt_bench"]


def test_an_unexpected_error_is_code_70_one_line_and_a_traceback_in_a_file(cli, monkeypatch, capsys):
    def broken(name: str) -> None:
        raise ZeroDivisionError("\x1b[31mred\ntwo lines \ud800")

    monkeypatch.setattr("apt_bench.cli.ls.load_suite", broken)
    with pytest.raises(
        AssertionError, match="internal error"
    ):  # the fixture shows stderr where the code is another
        cli("ls", "--suite", "x", code=0)
    monkeypatch.setattr(sys, "argv", ["apt-bench", "ls", "--suite", "x"])
    from apt_bench.cli import main

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 70
    err = capsys.readouterr().err
    (line,) = err.splitlines()
    assert line.startswith("apt-bench: internal error: ZeroDivisionError: \\x1b[31mred two lines \\ud800")
    traceback = Path(re.search(r"is in (\S+)\.$", line)[1])
    assert "in broken" in traceback.read_text()
    traceback.unlink()


def test_ctrl_c_that_an_import_turns_into_something_else_is_code_130(cli, monkeypatch):
    def cut_short(name: str) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RecursionError("maximum recursion depth exceeded") from None  # as numpy's lazy modules do

    monkeypatch.setattr("apt_bench.cli.ls.load_suite", cut_short)
    cli("ls", "--suite", "x", code=130)


def test_a_verb_that_cannot_be_imported_is_code_70(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "apt_bench.cli.ls", None)
    cli("ls", code=70)


def test_a_traceback_that_cannot_be_written_is_said(monkeypatch):
    monkeypatch.setattr("tempfile.mkstemp", lambda **options: os.open("/nowhere/x", os.O_RDWR))
    assert "nowhere (No such file or directory)" in crashed(ValueError("x"))


def test_an_error_whose_message_cannot_be_made_is_a_line_too():
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    line = crashed(Odd())
    assert "cannot be read" in line
    Path(re.search(r"is in (\S+)\.$", line)[1]).unlink()


def test_bad_usage_is_code_2(cli, capsys, monkeypatch):
    for words, message in (
        (["ls", "nothing"], "Error:"),
        (["run"], "apt-bench: --suite is missing."),
        (["no_such_verb"], "Error:"),
        (["run", "--suite", "libero", "--policy", "zero", "--limit", "x"], "Error:"),
    ):
        done = subprocess.run([*WORDS, *words], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_reader_of_stdout_that_has_gone_is_no_verdict():
    with subprocess.Popen(
        [*WORDS, "ls", "tasks"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == ""


def test_a_full_disk_behind_stdout_is_no_verdict():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*WORDS, "ls"], stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    assert (done.returncode, done.stderr) == (2, "apt-bench: No space left on device.\n")


CTRL_C = """
import os, signal, sys
def hook(event, arguments):
    if event == "import" and arguments[0] == {module!r} and not os.environ.pop("DONE", None):
        os.environ["DONE"] = "1"
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
sys.argv = ["apt-bench", *{words!r}]
from apt_bench.cli import main
main()
"""
DRY = ["run", "--suite", "tests/toy_suite.yaml", "--policy", "tests.toy:PushPolicy", "--dry-run"]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("typer", ["ls"]),
        ("rich.console", ["ls"]),
        ("yaml", ["ls"]),
        ("numpy", DRY),
        ("mujoco", DRY),  # by a person's own module, while the verb runs
    ],
)  # fmt: skip
def test_ctrl_c_while_modules_are_imported_is_one_line_and_code_130(module, words):
    code = CTRL_C.format(module=module, words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "apt-bench: interrupted. Rerun the same command to resume.\n"
    assert done.returncode == 130


def test_almost_nothing_is_imported_before_ctrl_c_can_be_caught():
    code = "import sys; before = set(sys.modules); import apt_bench.cli; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    ours = {m for m in done.stdout.split() if m.startswith("apt_bench")}
    assert set(done.stdout.split()) - ours <= {"__future__"}
    assert len(ours) < 8


def test_the_deleted_working_directory_is_a_message(tmp_path):
    code = (
        "import os, shutil, sys; shutil.rmtree(os.getcwd()); sys.argv = ['apt-bench', 'ls', 'runs']\n"
        "from apt_bench.cli import main; main()"
    )
    (tmp_path / "here").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path / "here", env=environment
    )
    assert done.returncode == 2
    assert "No folder 'results/runs'" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_verb_is_built():
    assert len(build().registered_commands) + len(build().registered_groups) >= 12


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_streams_that_were_closed_before_the_start_are_no_verdict(closed, tmp_path):
    """Nor does a file of the run get a stream's number, into which libraries print."""
    out = tmp_path / "run"
    words = ["--suite", "tests/toy_suite.yaml", "--policy", "random", "--cells", "push", "--episodes", "1"]
    done = subprocess.run(
        [*WORDS, "run", *words, "--workers", "0", "--out", out],
        cwd=ROOT,
        preexec_fn=lambda: [os.close(number) for number in closed],
        timeout=120,
    )
    assert done.returncode == 0
    assert all(line.startswith("{") for line in (out / "episodes.jsonl").read_text().splitlines())


def test_ctrl_c_in_code_that_somebody_executes_is_code_130():
    code = "import sys\nfrom apt_bench.cli import _interrupted, _leave\n"
    code += "try: exec('raise KeyboardInterrupt')\nexcept KeyboardInterrupt: _leave(_interrupted())"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, cwd=ROOT)
    assert done.returncode == 130
