"""The YAML files of served policies: what a user needs to know is there, and `apt-bench doctor` prints it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from apt_bench.cli import doctor
from apt_bench.policies.registry import baseline_names, load_baseline
from tests.policies.remote.kinds import KINDS
from tests.policies.remote.servers import StarVla
from tests.rollout.commands import ROOT, SUITE

SERVED = [name for name in baseline_names() if load_baseline(name).server and not load_baseline(name).llm]
FACTS = (
    "protocol", "start", "versions", "checkpoints", "images", "state", "actions", "libero", "row", "traps"
)  # fmt: skip
PAGE = (ROOT / "docs/baselines.md").read_text()


def test_every_protocol_has_a_baseline() -> None:
    assert {kind.baseline for kind in KINDS.values()} <= set(SERVED)


@pytest.mark.parametrize("name", SERVED)
def test_a_baseline_has_every_fact(name: str) -> None:
    ref = load_baseline(name)
    assert tuple(ref.conventions) == FACTS
    assert all(ref.conventions.values())
    assert f"| `{name}` |" in PAGE
    assert ref.conventions["start"].split(",")[0].split(" --")[0] in PAGE


@pytest.mark.parametrize("name", SERVED)
def test_its_published_row_is_the_papers(name: str) -> None:
    ref = load_baseline(name)
    with open(ROOT / "results/published/libero_pro.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    if ref.published is None:
        assert ref.conventions["row"].startswith("none")
        return
    average = rows[ref.published]["avg"]
    assert ref.conventions["row"].startswith(f"{average} ")
    assert "Table 1 of arXiv 2606.12366" in ref.conventions["row"]


def test_doctor_prints_the_facts_and_the_interface(
    cli: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    for name in ("_rendering", "_memory", "_disk", "_ray"):
        monkeypatch.setattr(doctor, name, lambda: "fine")
    for name in ("_packages", "_episode"):
        monkeypatch.setattr(doctor, name, lambda suite: "fine")
    words = ["doctor", "--suite", SUITE, "--policy", "langforce", "--frames", tmp_path]
    with StarVla() as server:  # its answer does not depend on the instruction
        out = cli(*words, "--server", server.url, code=1)
    for name, text in load_baseline("langforce").conventions.items():
        assert f"{name}: {text}" in " ".join(out.split())
    assert "gripper=unit_open, image_size=(224, 224), resize=bilinear, chunking=client" in " ".join(
        out.split()
    )
