"""Start of the command line: its version, its help, and `python -m apt_bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import apt_bench
from apt_bench.cli import build

ROOT = Path(__file__).parents[2]
MODULE = [sys.executable, "-m", "apt_bench"]
SCRIPT = [sys.executable, "-c", "from apt_bench.cli import main; main()"]
"""Calls `main` as the console script does."""


def _call(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, cwd=cwd)


def test_version_is_one_line(cli):
    assert cli("--version", code=0) == f"apt-bench {apt_bench.__version__}\n"


def test_version_imports_no_verb():
    code = "import sys; sys.argv = ['apt-bench', '--version']; from apt_bench.cli import main\n"
    code += "try: main()\nexcept SystemExit as stop: code = stop.code\n"
    code += "sys.exit(code or ' '.join({'numpy', 'torch', 'apt_bench.cli.run'} & {*sys.modules}) or 0)"
    done = _call(sys.executable, "-c", code)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def _verbs(group, path=()):
    """The words that lead to each command, its own name last; the application itself is ()."""
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from _verbs(command, (*path, name))


def test_the_list_of_verbs_says_what_each_does_in_whole_sentences(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    listed = cli("--help", code=0).partition("Commands:")[2]
    assert len(listed.splitlines()) > 12
    assert "..." not in listed


def test_h_is_help_on_every_verb(cli):
    import typer

    paths = list(_verbs(typer.main.get_command(build())))
    assert {(), ("run",), ("ls",), ("check",)} <= {*paths}
    for path in paths:
        short = cli(*path, "-h", code=0)
        assert short == cli(*path, "--help", code=0)
        assert short.startswith(" ".join(["Usage: apt-bench", *path]))
        assert "-h, --help" in short


@pytest.mark.parametrize(
    "words", [["--version"], ["ls", "-h"], ["ls", "nothing"], ["ls", "cells", "--suite", "x"]]
)
def test_python_m_apt_bench_is_the_console_script(words):
    module, script = _call(*MODULE, *words), _call(*SCRIPT, *words)
    assert (module.returncode, module.stdout, module.stderr) == (
        script.returncode,
        script.stdout,
        script.stderr,
    )
    assert "__main__" not in module.stdout + module.stderr


def test_python_m_apt_bench_imports_nothing_of_the_working_directory_first(tmp_path):
    # Not contextlib or typing: Python's own `-m` imports them before any module of ours.
    for name in ("__future__", "signal", "typer", "rich", "yaml", "random", "json"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the working directory')")
    done = _call(*MODULE, "ls", "suites", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rigid_pick_place" in done.stdout
