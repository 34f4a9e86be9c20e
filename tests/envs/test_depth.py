"""Depth images: their convention, and that nothing changes for those who do not request them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from apt_bench.core.config import load_object
from apt_bench.core.errors import UserError
from apt_bench.envs.base import AGENTVIEW, DEPTH, WRIST, Env, Observation, Scene
from apt_bench.envs.mujoco_no_gl import mujoco
from apt_bench.envs.segmentation import Segmenter
from apt_bench.suites import EpisodeSpec, load_suite

BOTH = (AGENTVIEW, WRIST)
DEPTHS = (AGENTVIEW + DEPTH, WRIST + DEPTH)


@pytest.fixture(
    scope="module",
    params=["rigid_pick_place", pytest.param("libero_pro", marks=pytest.mark.sim)],
)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Env, EpisodeSpec]]:
    suite = load_suite(request.param)
    env = load_object(suite.env)()
    yield env, suite.select(episodes=1)[0]
    env.close()


def world_points(seen: Observation, camera: str, mask: np.ndarray) -> np.ndarray:
    """By the documented formula: K, the camera's pose, and the depth along the optical axis."""
    v, u = np.nonzero(mask)
    z = seen.depths[camera][v, u]
    local = np.linalg.inv(seen.cameras[camera].K) @ np.stack([u * z, v * z, z])
    return np.asarray(local.T @ seen.cameras[camera].pose[:3, :3].T + seen.cameras[camera].pose[:3, 3])


def surface(scene: Scene, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Low and high corner of the box that encloses an object's drawn geoms."""
    model, data = scene.model, scene.data
    clouds = []
    for geom in scene.objects[name].geoms:
        if model.geom_group[geom] == 1:
            corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
            local = model.geom_aabb[geom, :3] + corners * model.geom_aabb[geom, 3:]
            if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
                mesh = model.geom_dataid[geom]
                local = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
            clouds.append(local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
    points = np.concatenate(clouds)
    return points.min(0), points.max(0)


def test_pixels_with_their_depths_are_points_on_the_objects(place: tuple[Env, EpisodeSpec]) -> None:
    env, spec = place
    seen = env.reset(spec, (*BOTH, *DEPTHS), privileged=True)
    assert seen.scene is not None
    segmenter = Segmenter()
    labels = segmenter.labels(seen.scene, seen.cameras, 256)
    for camera in BOTH:
        assert seen.depths[camera].shape == seen.images[camera].shape[:2]
        assert seen.depths[camera].dtype == np.float32
        checked = 0
        for label, name in enumerate(segmenter.names, 1):
            mask = binary_erosion(labels[camera] == label, iterations=2)  # edges mix two depths
            if mask.sum() < 40:
                continue
            points = world_points(seen, camera, mask)
            low, high = surface(seen.scene, name)
            inside = ((points > low - 0.01) & (points < high + 0.01)).all(1)
            assert inside.mean() > 0.99, (camera, name)
            checked += 1
        assert checked >= 2
    segmenter.close()


def test_a_depth_image_changes_no_image_and_no_state(place: tuple[Env, EpisodeSpec]) -> None:
    env, spec = place
    action = np.array([[0.3, -0.2, -0.5, 0, 0, 0.1, 1.0]])
    found = []
    for cameras in (BOTH, (*BOTH, *DEPTHS), DEPTHS):
        first, second = env.reset(spec, cameras), env.step_chunk(action)
        found.append((first, second, env.outcome().end_hash))
    for plain, deep, only in zip(*(f[:2] for f in found), strict=True):
        assert plain.depths == {}
        assert only.images == {}
        assert set(deep.depths) == set(only.depths) == set(only.cameras) == set(BOTH)
        for camera in BOTH:
            np.testing.assert_array_equal(plain.images[camera], deep.images[camera])
            np.testing.assert_array_equal(only.depths[camera], deep.depths[camera])
    assert len({f[2] for f in found}) == 1


def test_nothing_is_rendered_where_no_image_is_wanted(place: tuple[Env, EpisodeSpec]) -> None:
    env, spec = place
    env.reset(spec, DEPTHS)
    seen = env.step_chunk(np.zeros((1, 7)), render=False)
    assert (seen.images, seen.depths, seen.cameras) == ({}, {}, {})


def test_an_unknown_camera_is_named(place: tuple[Env, EpisodeSpec]) -> None:
    env, spec = place
    with pytest.raises(UserError, match=r"no camera 'agentvew'.*'agentview'"):
        env.reset(spec, ("agentvew_depth",))
