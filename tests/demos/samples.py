"""Demonstrations with known numbers and images that compress and move like a scene's."""

from __future__ import annotations

import numpy as np

from apt_bench.demos.demonstration import CameraTrack, DemoInfo, Demonstration
from apt_bench.suites import EpisodeKey


def sample(
    init: int = 0, steps: int = 23, size: int = 64, task: str = "put_the_bowl_on_the_plate"
) -> Demonstration:
    rng = np.random.default_rng(init)
    key = EpisodeKey("libero", "goal", task, init, 7)
    y, x = np.mgrid[:size, :size]
    images = {}
    for name in ("agentview", "wrist"):
        frames = np.stack([np.stack([x * 2, y * 2, np.full_like(x, 40)], -1)] * steps).astype(np.uint8)
        for t in range(steps):
            frames[t, 5:20, 2 * t : 2 * t + 12] = (
                250,
                30,
                20,
            )  # a square that moves to the right, near the top
        images[name] = frames
    actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32).astype(np.float64)
    actions[:, 6] = np.where(np.arange(steps) < steps // 2, -1.0, 1.0)
    state = rng.normal(size=(steps, 8)).astype(np.float32)
    state[:, 6:] = [0.039, -0.039]
    K = np.array([[-100.0, 0, 31.5], [0, 100.0, 31.5], [0, 0, 1]])
    fixed = np.tile(np.eye(4), (steps, 1, 1))
    moving = fixed.copy()
    moving[:, :3, 3] = rng.normal(size=(steps, 3)).astype(np.float32)
    info = DemoInfo(
        episode=key.id,
        steps=steps,
        instruction=task.replace("_", " "),
        key=key,
        start_hash="aa",
        end_hash="bb",
        policy="oracle",
        scene={"env": "a:B", "args": {"benchmark": "libero_goal"}},
    )
    return Demonstration(
        info=info,
        images=images,
        state=state,
        actions=actions,
        cameras={"agentview": CameraTrack(K, fixed), "wrist": CameraTrack(K, moving)},
        joints=rng.normal(size=(steps, 7)),
        sim_states=rng.normal(size=(steps, 40)),
        segmentation={"agentview": (images["agentview"][..., 0] > 245).astype(np.uint8)},
        segments=("square",),
    )
