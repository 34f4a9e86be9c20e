"""On a terminal, no command works for long without output.

The tests measure CPU seconds, because a busy machine makes every pause longer.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.terminal import in_terminal

LONGEST = 3.0
"""CPU seconds between two pieces of output, at most."""

TOY = ["--suite", "tests/toy_suite.yaml", "--policy", "tests.toy:PushPolicy"]


def cpu_seconds(process: int) -> float:
    """CPU seconds of a process and of its children that have ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def pauses(*commands: list[object]) -> tuple[list[tuple[float, bytes]], str]:
    """The CPU seconds before each piece of the output and the piece before it; and the whole output."""
    found: list[tuple[float, bytes]] = []
    before, last = 0.0, b""

    def heard(process: int, block: bytes) -> None:
        nonlocal before, last
        now = cpu_seconds(process)
        found.append((now - before, last))
        before, last = now, block

    said = in_terminal(commands, heard=heard)
    return found, said


def test_no_step_is_silent(tmp_path: Path) -> None:
    run = tmp_path / "run"
    found, said = pauses(
        ["run", *TOY, "--episodes", "2", "--workers", "0", "--out", run],
        ["run", "--suite", "libero_pro", "--policy", "zero", "--dry-run"],
        ["ls", "tasks"],
        ["probe", *TOY, "--episodes", "1"],
        ["report", run, "--out", tmp_path / "report"],
        ["doctor", "--quick"],
    )
    assert "exit code 2" not in said
    assert "internal error" not in said
    assert [(seconds, after) for seconds, after in found if seconds > LONGEST] == []


def test_the_quick_check_is_quick() -> None:
    found, said = pauses(["doctor", "--quick"])
    assert "rendering" in said
    assert sum(seconds for seconds, _ in found) < 10


@pytest.mark.sim
def test_an_episode_in_the_simulator_is_not_silent(tmp_path: Path) -> None:
    words = ["--suite", "rigid_pick_place", "--policy", "zero", "--cells", "so", "--limit", "1"]
    found, said = pauses(["run", *words, "--workers", "0", "--out", tmp_path / "run"])
    assert "Next: apt-bench report" in said
    assert [(seconds, after) for seconds, after in found if seconds > LONGEST] == []
