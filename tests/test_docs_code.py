"""The code of the pages about the API runs unchanged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.(?:py|yaml))\n")


@pytest.mark.parametrize("page", ["api.md", "extending.md"])
def test_the_code_of_a_page_runs(page: str, tmp_path: Path) -> None:
    """Blocks that begin with a file's name are that file; the other Python blocks are one program."""
    program = []
    for language, code in BLOCK.findall((DOCS / page).read_text()):
        if named := FILE.match(code):
            (tmp_path / named[1]).write_text(code)
        elif language == "python":
            program.append(code)
    assert program
    (tmp_path / "program.py").write_text("\n".join(program))
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "results" / "runs").iterdir())) == len(
        re.findall(r"evaluate\(", "".join(program))
    )


@pytest.mark.parametrize("page", ["api.md", "extending.md"])
def test_lines_are_at_most_100_characters(page: str) -> None:
    assert [line for line in (DOCS / page).read_text().splitlines() if len(line) > 100] == []
