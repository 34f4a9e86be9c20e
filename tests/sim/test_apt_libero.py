"""The networks that ship for LIBERO do tasks of LIBERO-PRO, and do what they are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from apt_bench import evaluate

pytestmark = pytest.mark.sim


@pytest.mark.parametrize(
    ("cell", "tasks"),
    [
        ("object_task", ["0", "4"]),
        pytest.param("spatial_task", ["3", "5"], marks=pytest.mark.slow),
        pytest.param("goal_task", ["2", "6"], marks=pytest.mark.slow),
    ],
)
def test_a_network_does_the_task_that_the_sentence_names(tmp_path: Path, cell: str, tasks: list[str]) -> None:
    more = {"tasks": tasks, "episodes": 1, "workers": 0, "progress": False}
    told = evaluate("apt", "libero_pro", cell, out=tmp_path / "told", **more)  # type: ignore[arg-type]
    stale = evaluate("apt", "libero_pro", f"{cell}@stale", out=tmp_path / "stale", **more)  # type: ignore[arg-type]
    assert (told.episodes["outcome"] == "success").any()
    assert not (stale.episodes["outcome"] == "success").any()
