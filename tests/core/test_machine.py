"""What a run records about its machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apt_bench.core.machine import cores, cpu_name, system_info, vector_instructions


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "nonsense"}, 64),
    ],
)
def test_cores_are_those_that_the_container_grants(files, granted, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores(tmp_path) == granted


@pytest.mark.parametrize(
    ("cpuinfo", "found"),
    [
        ("model name\t: X\nflags\t\t: fpu sse4_2 avx avx2 avx512f avx512bw\nvmx flags\t: ept\n", "avx512f"),
        ("model name\t: X\nflags\t\t: fpu sse4_2 avx avx2\n", "avx2"),
        ("processor\t: 0\nFeatures\t: fp asimd crc32\n", "asimd"),
        ("flags\t\t: fpu sse2\n", None),
        ("", None),
    ],
)
def test_the_widest_vector_instructions_are_recorded(cpuinfo, found, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda file: cpuinfo)
    assert vector_instructions() == found
    assert cpu_name() == "X" or "model name" not in cpuinfo


def test_a_machine_is_described_completely():
    described = system_info()["machine"]
    assert described["vector"] == vector_instructions()
    assert all(described[name] for name in ("platform", "cpu", "cores", "memory_gb"))
