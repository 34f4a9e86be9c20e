"""Code as policies solves tasks of LIBERO-PRO: one of each object and spatial cell, with hand-written answers.

The answers are those of `tests/policies/cap/hand_written.py`, replayed from the cassettes in `tests/data/cap`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.policies.cap.hand_written import TASKS, TIERS, cassette, run

pytestmark = pytest.mark.sim


@pytest.mark.parametrize(
    ("tier", "cell"),
    [
        pytest.param(
            tier, cell, marks=[] if tier == "privileged" or cell == "spatial_task" else pytest.mark.slow
        )
        for tier in TIERS
        for cell in TASKS
    ],
)
def test_a_task_of_each_cell_is_solved(tier: str, cell: str, tmp_path: Path) -> None:
    run(tier, cell, tmp_path, cassette=["replay", str(cassette(tier))])
    record = json.loads((tmp_path / "episodes.jsonl").read_text())
    assert record["outcome"] == "success"
    notes = record["notes"]
    assert notes["differs_text"] == notes["raised"] == notes["stopped"] == 0
