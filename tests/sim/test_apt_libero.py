"""The network that ships for LIBERO-Object does tasks of LIBERO-PRO, and does what it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from apt_bench import evaluate

pytestmark = pytest.mark.sim


def test_it_does_the_task_that_the_sentence_names(tmp_path: Path) -> None:
    more = {"tasks": ["0", "4"], "episodes": 1, "workers": 0, "progress": False}
    told = evaluate("apt", "libero_pro", "object_task", out=tmp_path / "told", **more)  # type: ignore[arg-type]
    stale = evaluate("apt", "libero_pro", "object_task@stale", out=tmp_path / "stale", **more)  # type: ignore[arg-type]
    assert (told.episodes["outcome"] == "success").any()
    assert not (stale.episodes["outcome"] == "success").any()
