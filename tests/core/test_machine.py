"""What a run records about its machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import apt_bench.core.machine as machine
from apt_bench.core.machine import cores, system_info, vector_instructions


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
    ("entries", "found"),
    [
        ({"flags": "fpu sse4_2 avx avx2 avx512f avx512bw"}, "avx512f"),
        ({"flags": "fpu sse4_2 avx avx2"}, "avx2"),
        ({"Features": "fp asimd crc32"}, "asimd"),
        ({"flags": "fpu sse2"}, None),
        ({}, None),
    ],
)
def test_the_widest_vector_instructions_are_recorded(entries, found, monkeypatch):
    monkeypatch.setattr(machine, "_cpu_entry", lambda name: entries.get(name, ""))
    assert vector_instructions() == found
    assert system_info()["machine"]["vector"] == found
