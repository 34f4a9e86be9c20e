"""Shell completion by bash's protocol: verbs, options, and the names of suites, policies and cells."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from apt_bench.cli import VERBS, build

Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(cli, monkeypatch) -> Complete:
    """Gives the completions that bash offers for a line with the cursor at its end."""

    def ask(line: str) -> list[str]:
        words = line.split()
        monkeypatch.setenv("_APT_BENCH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - (not line.endswith(" "))))
        return cli(code=0).split()

    return ask


def test_the_table_of_verbs_is_what_the_modules_define():
    for names_only in (False, True):
        assert list(typer.main.get_command(build(names_only=names_only)).commands) == list(VERBS)
    for verb in VERBS:
        assert verb in typer.main.get_command(build(verb)).commands
    modules = {p.stem for p in Path(sys.modules["apt_bench.cli"].__file__).parent.glob("[a-z]*.py")}
    assert modules == {*VERBS.values()}


def test_verbs_are_completed(complete):
    assert complete("apt-bench re") == ["report", "replay"]
    assert complete("apt-bench ") == list(VERBS)
    assert complete("apt-bench check") == ["check"]
    assert complete("apt-bench trials ") == ["new", "import"]


def test_options_are_completed(complete):
    assert complete("apt-bench check run --ma") == ["--margin"]
    assert complete("apt-bench run --save") == ["--save-actions"]
    assert complete("apt-bench --ver") == ["--version"]


def test_suites_and_policies_are_completed(complete):
    assert complete("apt-bench run --suite libero") == [
        "libero",
        "libero_base",
        "libero_compose",
        "libero_drawn",
        "libero_pro",
    ]
    assert complete("apt-bench run --suite libero_pro --policy or") == ["oracle"]


def test_cells_of_the_suite_are_completed_as_a_comma_list(complete):
    line = "apt-bench validate --suite rigid_pick_place --cells "
    assert complete(f"{line}uo") == ["uo", "uoue", "uouc", "uoucue"]
    assert complete(f"{line}so,uo,uou") == [f"so,uo,{cell}" for cell in ("uoue", "uouc", "uoucue")]
    assert complete(f"{line}so,s") == ["so,so_ur5e"]
    assert complete("apt-bench validate --suite no_such_suite --cells s") == []
    assert complete("apt-bench validate --cells s") == []


def test_the_script_that_show_completion_prints_works_in_bash(tmp_path):
    """bash calls its function and gets the verbs; nothing that a verb needs is imported for it."""
    program = tmp_path / "apt-bench"
    code = "import sys; sys.modules['numpy'] = None; from apt_bench.cli import main; main()"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    script = subprocess.run(
        [sys.executable, "-c", f"import typer\n{FORCED}"], env=environment, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    (tmp_path / "script.sh").write_text(script)
    done = subprocess.run(
        ["bash", "-c", 'source script.sh; COMP_WORDS=(apt-bench va); COMP_CWORD=1; _apt_bench_completion ./apt-bench; '
         'echo "${COMPREPLY[*]}"'],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("validate\n", "")


FORCED = """
import os, sys
os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
sys.argv = ["apt-bench", "--show-completion", "bash"]
from apt_bench.cli import main
main()
"""
