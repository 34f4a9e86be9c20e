"""apt-bench's own tabletop scenes: rigid pick-place, clutter and composite tasks.

Importing this package imports no simulator; the first use of `TabletopEnv` does.
"""

from __future__ import annotations

from typing import Any

from apt_bench.envs.tabletop.tasks import cell_tasks

__all__ = ["TabletopEnv", "cell_tasks", "checks"]


def __getattr__(name: str) -> Any:
    if name == "TabletopEnv":
        from apt_bench.envs.tabletop.env import TabletopEnv

        return TabletopEnv
    if name == "checks":
        from apt_bench.envs.tabletop.validation import checks

        return checks
    raise AttributeError(name)
