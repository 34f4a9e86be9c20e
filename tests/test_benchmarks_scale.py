"""The simulation of the schedule, the measurement of the driver, and the script for a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apt_bench.suites import load_suite
from benchmarks import gpu, scaling

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[1]


@pytest.fixture
def specs():
    return [
        dataclasses.replace(s, max_steps=100) for s in load_suite("tests/toy_suite.yaml").select(episodes=3)
    ]


def test_one_worker_is_never_idle_and_compiles_each_scene_once(specs):
    costs = scaling.Costs(start=0.0, compile=5.0, step=0.1, driver=0.0)
    total = scaling.simulate(specs, 1, costs)
    assert total.compiled == 5.0 * len({s.group for s in specs})
    assert total.makespan == pytest.approx(total.busy)
    assert 3 * len(specs) <= total.busy - total.compiled <= 10 * len(specs)


def test_two_workers_halve_the_time_unless_the_driver_is_the_limit(specs):
    quick = scaling.Costs(start=0.0, compile=0.0, step=0.1, driver=0.0)
    one, two = (scaling.simulate(specs, n, quick).makespan for n in (1, 2))
    assert one / 2 <= two < 0.65 * one
    slow = scaling.simulate(specs, 8, dataclasses.replace(quick, driver=100.0))
    assert slow.makespan >= 100.0 * len(specs)
    assert slow.driver == 100.0 * len(specs)


def test_policies_that_share_a_schedule_compile_less(specs):
    many = [dataclasses.replace(s, group=f"{s.key.task}{s.key.init}{s.key.cell}") for s in specs]  # 12 scenes
    costs = scaling.Costs(start=0.0, compile=5.0, step=0.1, driver=0.0)
    runs = scaling.several(many, 3)
    apart = sum(scaling.simulate(run, 1, costs).compiled for run in runs)
    shared = scaling.simulate([s for group in zip(*runs, strict=True) for s in group], 1, costs)
    assert apart == 3 * shared.compiled == 3 * 5.0 * 12


def test_the_driver_records_every_copy(capsys):
    scaling.driver(40, batch=7)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert lines[9].split()[:2] == ["40", "records:"]


# --- the script for a GPU ---------------------------------------------------------------------------------

FAKE = """
import sys, time, runpy
sys.path.insert(0, {root!r})
from benchmarks import gpu
part = sys.argv[sys.argv.index("--part") + 1]
rows = gpu.Path(sys.argv[sys.argv.index("--out") + 1])
if part == "fails":
    sys.exit("no such device")
with open(rows, "a") as file:
    file.write('{{"what": "x", "value": 1.5, "unit": "ms"}}\\n')
if part == "hangs":
    time.sleep(1000)
"""


def test_a_part_that_hangs_or_fails_costs_only_itself(tmp_path, monkeypatch, capsys):
    script = tmp_path / "fake.py"
    script.write_text(FAKE.format(root=str(ROOT)))
    monkeypatch.setattr(gpu, "__file__", str(script))
    limit = float(os.environ.get("APT_BENCH_TEST_SECONDS", 10))
    parts = [gpu.Part(n, limit) for n in ("measured", "hangs", "fails")] + [
        gpu.Part("needs one", 1, gpu=True)
    ]
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out"), "--seconds", "1000"])
    gpu.main()
    report = json.loads((tmp_path / "out/gpu.json").read_text())
    status = {name: part["status"] for name, part in report["parts"].items()}
    assert status == {
        "measured": "measured",
        "hangs": "took too long",
        "fails": "failed: no such device",
        "needs one": "skipped: no GPU",
    }
    assert [len(part["rows"]) for part in report["parts"].values()] == [1, 1, 0, 0]
    table = (tmp_path / "out/gpu.md").read_text()
    assert "| hangs | x | 1.5 | ms |" in table
    assert "| hangs | took too long | | |" in table
    assert table in capsys.readouterr().out


def test_nothing_starts_when_the_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--seconds", "6"])
    gpu.main()
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert list(report["parts"]) == [part.name for part in gpu.PARTS]
    assert all(part["status"].startswith("skipped") for part in report["parts"].values())


def test_images_of_two_processes_are_compared(tmp_path):
    def rows(*images: str) -> dict[str, object]:
        found = [
            {"what": f"scene {i}", "value": 1, "unit": "ms", "images": [h]} for i, h in enumerate(images)
        ]
        return {"status": "measured", "rows": found}

    report = {"parts": {"rendering": rows("a", "b", "c"), "rendering again": rows("a", "x")}}
    gpu.write(report, tmp_path)
    assert "equal in two processes | 1 of 2 |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_every_part_measures_small_shapes_on_a_cpu(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--seconds", "1500", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=1600)
    report = json.loads((tmp_path / "gpu.json").read_text())
    for name, part in report["parts"].items():
        assert part["status"] in ("measured", "skipped: fewer cores than workers"), name
        assert part["rows"] or part["status"] != "measured", name
