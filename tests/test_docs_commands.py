"""Every command in README, CONTRIBUTING and docs exists, takes the options that it is shown with, and runs.

`apt-bench` commands are run in a folder that holds the files which the pages name, with words appended that make
them short (`APPENDED`). Commands that take long are only parsed; `ELSEWHERE` names what runs them.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from apt_bench.cli import build
from apt_bench.policies.base import PolicySpec
from apt_bench.policies.registry import find_policy
from apt_bench.reporting.report import Report
from apt_bench.rollout.identity import protocol
from apt_bench.runs.protocol import protocol_hash
from apt_bench.suites import load_suite
from tests.runs import record, write_run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"\$ |(apt-bench|bash|cd|git|pip|pytest|python3?|source) |[A-Z_]+=\S+ ")

APPENDED = {
    "run": "--dry-run",
    "collect": "--episodes 1 --limit 1 --size 32 --workers 0",
    "replay": "--index 0",
    "train": "--dry-run",
}
"""Verb -> words that make it short; of an option that is given twice the last value counts."""

INSTEAD = {"apt-bench run ...": "apt-bench run --suite rigid_pick_place --policy zero"}
"""Beginning of a command that a page abbreviates -> the same in full."""

CODES = {"apt-bench check results/runs/NEW": 3}
"""Beginning of a command -> its exit code, where that is not 0. 16 pairs cannot decide about 5 points."""

ELSEWHERE = {
    r"apt-bench doctor": "tests/cli/test_doctor.py",
    r"apt-bench serve": "tests/serving/test_command.py",
    r"apt-bench view": "tests/cli/test_view.py",
    r"apt-bench play": "tests/cli/test_play.py",
    r"apt-bench collect --suite libero": "tests/sim/test_demonstrations.py",
    r"apt-bench validate .*--solvable": "tests/runs/test_solvability.py",
    r"bash (\.ci/run|scripts/(quick|setup|test|wheel)\.sh)": ".ci/run",
    r"(python|python3) -m (venv|build)|pip install|source \.venv": "scripts/setup.sh",
    r"git clone|cd apt-bench": ".github/workflows/tests.yml",
    r"pytest": "scripts/test.sh",
    r"python benchmarks/(?P<script>\w+\.py)": "benchmarks",
}
"""Pattern of a command -> the test or script that runs it."""


@dataclass(frozen=True)
class Command:
    page: Path
    line: str
    output: str = ""  # what the page shows below `$ command`


def _commands(page: Path) -> Iterator[Command]:
    for language, code in BLOCK.findall(page.read_text()):
        if language not in ("", "bash", "console", "sh"):
            continue
        lines = code.replace("\\\n", " ").splitlines()
        for number, line in enumerate(lines):
            if not PROGRAM.match(line) and (language == "" or not line.strip() or line.startswith("#")):
                continue
            shown = []
            if line.startswith("$ "):
                for below in lines[number + 1 :]:
                    if below.startswith("$ "):
                        break
                    shown.append(below)
            elif any(one.startswith("$ ") for one in lines):
                continue  # output
            for part in line.removeprefix("$ ").split("&&"):
                yield Command(page, part.strip(), "\n".join(shown))


COMMANDS = {page: found for page in PAGES if (found := list(_commands(page)))}


def _words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def _elsewhere(line: str) -> re.Match[str] | None:
    return next((m for pattern in ELSEWHERE if (m := re.match(pattern, line))), None)


def _in_full(line: str) -> str:
    for short, full in INSTEAD.items():
        if line.startswith(short):
            return full + line.removeprefix(short)
    return line


def _parse(words: list[str]) -> None:
    """Raise where the verb or an option does not exist, or a value has the wrong form."""
    command: Any = typer.main.get_command(build(words[0]))
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        command, *words = command.commands[words[0]], *words[1:]
    command.make_context(command.name, list(words))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the pages name."""
    for page in PAGES:
        for language, code in BLOCK.findall(page.read_text()):
            if named := re.match(r"# (\w+\.(?:py|yaml))\n", code):
                (tmp_path / named[1]).write_text(code)
            elif language == "python" and "class MyPolicy" in code:
                (tmp_path / "my_module.py").write_text(code)
            elif language == "csv":
                (tmp_path / "sentences.csv").write_text(code)
    for name in ("my_run.yaml", "run.yaml"):
        if not (tmp_path / name).exists():
            (tmp_path / name).write_text("suite: rigid_pick_place\npolicy: zero\n")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = {*sys.modules}
    suite, spec = load_suite("libero_pro"), find_policy("my_module:MyPolicy", {}).declared()
    for name in ("A", "B", "NEW", "OLD", "..."):
        _libero_run(tmp_path / "results" / "runs" / name, suite, spec)
    monkeypatch.setattr(Report, "figure", lambda *given: None)  # they take most of the time
    yield tmp_path
    for name in ({*sys.modules} - before) & {p.stem for p in tmp_path.glob("*.py")}:
        del sys.modules[name]


def _libero_run(path: Path, suite: Any, spec: PolicySpec) -> None:
    """One episode of two tasks of each cell of `libero_pro`, under the protocol of this policy."""
    card = protocol(suite, spec, spec.execute, None, None)
    write_run(path, lambda *key: True, {}, protocol={"hash": protocol_hash(card), **card})
    records = [record(s.key.cell, s.key.task, 0, True) for s in suite.select(tasks=["0", "1"], episodes=1)]
    (path / "episodes.jsonl").write_text("".join(r.to_json() + "\n" for r in records))


@pytest.mark.parametrize("page", COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_run(page, folder, cli):
    for command in COMMANDS[page]:
        line = _in_full(command.line)
        words = _words(line)
        ours = words[0] == "apt-bench"
        if ours:
            _parse(words[1:])
        if found := _elsewhere(line):
            _check_elsewhere(found, words)
            continue
        assert ours, f"{page.name}: no test or script runs '{command.line}'; add it to ELSEWHERE"
        more = _words(APPENDED.get(words[1], ""))
        code = next((c for start, c in CODES.items() if line.startswith(start)), 0)
        said = cli(*words[1:], *more, code=code)
        assert said.strip() or words[1] == "export"
        if command.output:
            assert said.strip() == command.output.strip()


def _check_elsewhere(found: re.Match[str], words: list[str]) -> None:
    where = ROOT / ELSEWHERE[found.re.pattern]
    assert where.exists()
    script = found.groupdict().get("script")
    if script:
        source = (where / script).read_text()
        assert [w for w in words if w.startswith("--") and f'"{w}"' not in source] == []
    for word in words[1:2]:
        if re.match(r"(scripts|benchmarks|examples|\.ci)/", word):
            assert (ROOT / word).is_file()


def test_commands_are_found():
    lines = [command.line for commands in COMMANDS.values() for command in commands]
    assert len(lines) > 35
    assert "bash scripts/quick.sh    # installs everything" in " ".join(lines)
    shown = [command for commands in COMMANDS.values() for command in commands if command.output]
    assert len(shown) == 2


def test_every_entry_is_used():
    """Every entry is still needed by a page."""
    lines = [_in_full(c.line) for commands in COMMANDS.values() for c in commands]
    for pattern in ELSEWHERE:
        assert any(re.match(pattern, line) for line in lines), pattern
    for start in [*INSTEAD, *CODES]:
        assert any(c.line.startswith(start) for commands in COMMANDS.values() for c in commands), start
