"""Small demonstrations by scripted motion: a hand goes to the square of the named colour and closes there.

The camera looks straight down, the images show what it would see (squares and a white dot for the hand), and
the numbers obey the conventions of the recorded ones: commanded pose = current pose plus 0.05 m per unit of
action.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from apt_bench.demos.demonstration import CameraTrack, DemoInfo, Demonstration
from apt_bench.demos.hdf5_writer import write_hdf5
from apt_bench.envs.base import ACTION_SCALE
from apt_bench.suites import EpisodeKey

SIZE, FOCAL, HEIGHT = 64, 80.0, 1.0
COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220)}


def demonstration(index: int, steps: int = 14, size: int = SIZE) -> Demonstration:
    """Number `index`; its colour alternates."""
    rng = np.random.default_rng(index)
    colour = ("red", "blue")[index % 2]
    spots = {"red": rng.uniform([-0.3, -0.3], [0.3, -0.05]), "blue": rng.uniform([-0.3, 0.05], [0.3, 0.3])}
    goal, position = np.array([*spots[colour], 0.05]), np.array([0.0, 0.0, 0.4])
    K = np.array(
        [[FOCAL * size / SIZE, 0, (size - 1) / 2], [0, FOCAL * size / SIZE, (size - 1) / 2], [0, 0, 1]]
    )
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.diag([1.0, -1.0, -1.0]), [0, 0, HEIGHT]
    states, actions, frames = [], [], []
    for t in range(steps):
        closing = t >= steps - 4
        gap = 0.04 * (1 - max(0, t - steps + 4) / 4)
        states.append([*position, np.pi, 0, 0, gap, -gap])
        move = np.clip((goal - position) / ACTION_SCALE[:3], -1, 1) * (not closing)
        actions.append([*move, 0, 0, 0, 1.0 if closing else -1.0])
        frames.append(_picture({**spots, "hand": position[:2]}, K, size))
        position = position + 0.9 * move * ACTION_SCALE[:3]
    track = CameraTrack(K, np.tile(pose, (steps, 1, 1)))
    key = EpisodeKey("scripted", "train", colour, index, 0)
    return Demonstration(
        info=DemoInfo(key.id, steps, f"go to the {colour} square", key=key, end_hash=str(index)),
        images={"agentview": np.stack(frames)},
        state=np.array(states, np.float32),
        actions=np.array(actions),
        cameras={"agentview": track},
    )


def _picture(things: dict, K: np.ndarray, size: int) -> np.ndarray:
    image = np.full((size, size, 3), 110, np.uint8)
    for name, (x, y) in things.items():
        u, v = K[0, 0] * x / HEIGHT + K[0, 2], -K[1, 1] * y / HEIGHT + K[1, 2]
        r = (4 if name in COLOURS else 2) * size // SIZE
        u, v = round(u), round(v)
        image[max(0, v - r) : v + r + 1, max(0, u - r) : u + r + 1] = COLOURS.get(name, (250, 250, 250))
    return image


def write(path: Path, count: int, first: int = 0, size: int = SIZE) -> Path:
    """A file with `count` of them."""
    write_hdf5(path, [demonstration(first + i, size=size) for i in range(count)])
    return path


def endless(config: Path, cache: Path, out: Path, *words: str) -> list[str]:
    """The command of a training that takes too long to end and saves no checkpoint before it is interrupted."""
    command = [sys.executable, "-m", "apt_bench", "train", "--config", str(config), "--device", "cpu"]
    command += ["--out", str(out), "--cache", str(cache), "--no-two-stage", "--steps", "100000"]
    return [*command, "--set", "train.save_every=100000", "--set", "train.eval_every=100000", *words]
