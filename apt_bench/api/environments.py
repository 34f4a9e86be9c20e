"""`make_env`: a cell of a suite as a `gymnasium.Env`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apt_bench.api._values import suite_name
from apt_bench.envs.base import AGENTVIEW, WRIST
from apt_bench.suites import Suite

if TYPE_CHECKING:
    from apt_bench.envs.gym import SuiteEnv


def make_env(
    suite: str | os.PathLike[str] | Suite,
    cell: str,
    cameras: Sequence[str] = (AGENTVIEW, WRIST),
    render_mode: str | None = None,
    unpinned: bool = False,
) -> SuiteEnv:
    """One cell of a suite as a `gymnasium.Env`.

    Args:
        suite: A suite's name, the path of its YAML file, or a Suite, which is then registered (`register_suite`).
        cell: The cell's name.
        cameras: Cameras of the observation; () renders no images, which is fast.
        render_mode: "rgb_array", or None.
        unpinned: Allow another simulator than the suite's; scores then are not comparable.

    Returns:
        The environment; see `apt_bench.envs.gym.SuiteEnv` for its spaces and the options of `reset`.

    Raises:
        UserError: The suite, cell, camera or render mode is unknown, the cell has no task that can be run, or the
            installed simulator is not the suite's.
    """
    from apt_bench.envs.gym import SuiteEnv

    return SuiteEnv(suite_name(suite), cell, tuple([cameras] if isinstance(cameras, str) else cameras),
                    render_mode, unpinned)  # fmt: skip
