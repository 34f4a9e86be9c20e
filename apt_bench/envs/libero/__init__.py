"""LIBERO and LIBERO-PRO. Importing this imports no simulator; `LiberoEnv` does when it is first used."""

from __future__ import annotations

from typing import Any

from apt_bench.envs.libero.catalog import cell_tasks

__all__ = ["LiberoEnv", "cell_tasks", "checks", "proofs"]


def __getattr__(name: str) -> Any:
    if name == "checks":
        from apt_bench.envs.libero.audit import checks

        return checks
    if name in ("LiberoEnv", "proofs"):
        from apt_bench.envs.libero.env import LiberoEnv
        from apt_bench.envs.libero.measure import proofs

        return LiberoEnv if name == "LiberoEnv" else proofs
    raise AttributeError(name)
