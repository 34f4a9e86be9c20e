"""LIBERO and LIBERO-PRO. Importing this package imports no simulator; the first use of `LiberoEnv` does."""

from __future__ import annotations

from typing import Any

from apt_bench.envs.libero.tasks import cell_tasks

__all__ = ["LiberoEnv", "cell_tasks", "checks", "proofs"]


def __getattr__(name: str) -> Any:
    if name == "checks":
        from apt_bench.envs.libero.validation import checks

        return checks
    if name in ("LiberoEnv", "proofs"):
        from apt_bench.envs.libero.defect_measurements import proofs
        from apt_bench.envs.libero.env import LiberoEnv

        return LiberoEnv if name == "LiberoEnv" else proofs
    raise AttributeError(name)
