"""The table of camera calibration, against the simulator."""

from __future__ import annotations

import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.envs.base import AGENTVIEW, WRIST
from apt_bench.serving.cameras import AGENTVIEWS, UnknownCameras, kind_of_scene, libero_cameras
from apt_bench.suites import load_suite

TASKS = [("goal_task", "0"), ("object_task", "0"), ("long_task", "0"), ("long_task", "2"), ("long_task", "5")]
"""One task of each kind of scene."""


def test_every_task_has_a_known_camera():
    kinds = set()
    for name in ("libero_pro", "libero", "libero_compose"):
        suite = load_suite(name)
        for cell in suite.cells:
            for task in suite.cell_tasks(cell):
                kinds.add(kind_of_scene(task.args["benchmark"], task.args["task"]))
    assert kinds == AGENTVIEWS.keys()


def test_unknown_cameras_refuse():
    cameras = UnknownCameras("nobody said so")
    for use in (lambda: "agentview" in cameras, lambda: list(cameras), lambda: cameras["agentview"]):
        with pytest.raises(UserError, match="nobody said so"):
            use()


@pytest.mark.sim
def test_they_are_the_simulators():
    from apt_bench.envs.libero.env import LiberoEnv

    env = LiberoEnv()
    suite = load_suite("libero_pro")
    seen = set()
    try:
        for cell, task in TASKS:
            (spec,) = suite.select([cell], [task], 1)
            found = env.reset(spec, (AGENTVIEW, WRIST))
            for turn in range(2):
                kind = kind_of_scene(spec.args["benchmark"], spec.args["task"])
                ours = libero_cameras(kind, found.state)
                for name, camera in found.cameras.items():
                    np.testing.assert_allclose(ours[name].pose, camera.pose, atol=2e-6)
                    np.testing.assert_allclose(ours[name].K, camera.K, atol=1e-9)
                if turn == 0:
                    found = env.step_chunk(np.tile([0.5, -0.5, 0.3, 0.4, -0.3, 0.8, 1.0], (8, 1)))
            seen.add(kind)
    finally:
        env.close()
    assert seen == AGENTVIEWS.keys()
