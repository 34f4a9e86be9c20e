"""What an image does not show is not drawn, and the image stays the same."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest

from apt_bench.envs.libero import LiberoEnv
from apt_bench.envs.libero.camera import Renderer
from apt_bench.envs.libero.visibility import Visibility
from apt_bench.suites import EpisodeSpec, load_suite

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def env() -> LiberoEnv:
    return LiberoEnv()


def plain(renderer: Renderer, data: Any, camera: int) -> np.ndarray:
    """The image of the whole scene, as robosuite draws it."""
    renderer.camera.fixedcamid = camera
    mujoco.mjv_updateScene(
        renderer.model, data, renderer.option, renderer.perturb, renderer.camera,
        mujoco.mjtCatBit.mjCAT_ALL, renderer.scene,
    )  # fmt: skip
    return np.ascontiguousarray(renderer.canvas.draw(renderer.scene, 256)[::-1, ::-1])


def compare(env: LiberoEnv, spec: EpisodeSpec, moves: int, steps: int) -> list[int]:
    """Move the arm around the table and compare both cameras' images after each move. Returns how many meshes each
    image's reflection pass left out."""
    env.reset(spec, ("agentview", "wrist"))
    renderer, data, rng = env.simulation.renderer, env.simulation.data, np.random.default_rng(0)
    left_out = []
    for i in range(moves):
        move = np.array([0, 0, 0, 0, 0, 0, -1.0])
        move[:2] = (-1.0, 1.0) if i < moves // 2 else rng.uniform(-1, 1, 2)
        env.step_chunk(np.tile(move, (steps, 1)), render=False)
        for camera in (renderer.model.camera(name).id for name in ("agentview", "robot0_eye_in_hand")):
            image = plain(renderer, data, camera)
            np.testing.assert_array_equal(image, renderer.render(data, camera))
            np.testing.assert_array_equal(image, renderer.render_depth(data, camera)[0])
            np.testing.assert_array_equal(image, plain(renderer, data, camera))  # nothing stays changed
            left_out.append(len(renderer._update(data, camera)))
    return left_out


@pytest.mark.parametrize(("cell", "task"), [("spatial_pos", "3"), ("object_pos", "0")])
def test_images_are_the_same_without_what_is_not_seen(env: LiberoEnv, cell: str, task: str) -> None:
    left_out = compare(env, load_suite("libero_pro").select([cell], [task], episodes=1)[0], 8, 8)
    model = env.simulation.renderer.model
    stove = any("stove" in model.geom(i).name for i in range(model.ngeom))
    assert any(left_out) == stove
    assert not stove or max(left_out) > 15
    if stove:  # the wrist does not see it at first
        assert 0 in left_out


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [s for suite in ("libero", "libero_pro") for s in load_suite(suite).select(episodes=1)],
    ids=lambda spec: spec.id,
)
def test_images_of_all_tasks_are_the_same(env: LiberoEnv, spec: EpisodeSpec) -> None:
    compare(env, spec, 4, 15)


def test_boxes_hold_all_vertices_and_a_reflection_needs_few_meshes(env: LiberoEnv) -> None:
    env.reset(load_suite("libero").select(["goal"], ["0"], episodes=1)[0], ("agentview",))
    renderer, data = env.simulation.renderer, env.simulation.data
    model, visibility = renderer.model, Visibility(renderer.model)
    corners = visibility.corners(data)
    low, high = corners.min(axis=1) - 1e-6, corners.max(axis=1) + 1e-6
    for geom in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_MESH):
        mesh = model.geom_dataid[geom]
        start, number = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        vertices = model.mesh_vert[start : start + number] @ data.geom_xmat[geom].reshape(3, 3).T
        vertices = vertices + data.geom_xpos[geom]
        assert (vertices >= low[geom]).all()
        assert (vertices <= high[geom]).all()
    camera, stove = model.camera("agentview").id, model.geom("flat_stove_1_base_vis").id
    reflected = visibility.reflected(data, camera, stove, corners)
    assert reflected is not None
    assert reflected[model.geom("flat_stove_1_burner").id]
    assert reflected.sum() < visibility.seen(data, camera, corners).sum()
    low_camera = data.cam_xpos[camera].copy()
    data.cam_xpos[camera][2] = data.geom_xpos[stove][2]  # beside the stove, below its top
    assert visibility.reflected(data, camera, stove, corners) is None
    data.cam_xpos[camera] = low_camera
