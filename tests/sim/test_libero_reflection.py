"""A reflective box outside the image costs no second drawing of the scene, and the image stays the same."""

from __future__ import annotations

import numpy as np
import pytest

from apt_bench.envs.libero import LiberoEnv
from apt_bench.suites import load_suite

pytestmark = pytest.mark.sim


def test_images_are_the_same_without_the_reflection_of_what_is_not_seen() -> None:
    env = LiberoEnv()
    env.reset(load_suite("libero_pro").select(["spatial_pos"], ["3"], episodes=1)[0], ("agentview", "wrist"))
    renderer, data = env.simulation.renderer, env.simulation.data
    mirrors, rng = renderer._mirrors, np.random.default_rng(0)
    assert [renderer.model.geom(g).name for g in mirrors if renderer.model.geom_group[g] == 1] == [
        "flat_stove_1_base_vis"
    ]
    wrist = env.simulation.sim.model.camera_name2id("robot0_eye_in_hand")
    seen = []
    for step in range(12):  # around the table, so that the stove enters and leaves the image
        move = np.array([0, 0, 0, 0, 0, 0, -1.0])
        move[:2] = (-1.0, 1.0) if step < 6 else rng.uniform(-1, 1, 2)
        env.step_chunk(np.tile(move, (6, 1)), render=False)
        seen.append([not renderer._outside(data, wrist, g) for g in mirrors][-2])
        image = renderer.render(data, wrist)
        renderer._mirrors = []
        np.testing.assert_array_equal(image, renderer.render(data, wrist))
        renderer._mirrors = mirrors
    assert any(seen)
    assert not all(seen)
    env.close()
