"""The part of a demonstration that training uses: poses, cameras and decision steps, without images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.demos.demonstration import Demonstration
from apt_bench.training.config import DataConfig

GRIPPER_STILL = 0.005
"""Change of openness per control step below which the gripper counts as still."""


@dataclass(frozen=True)
class Episode:
    """A demonstration without its images, at the steps that are kept. Poses are to the world frame, in metres.

    Attributes:
        name: Name of the episode.
        instruction: The instruction.
        kept: (T,) Steps of the demonstration that are kept; all other step numbers here count the kept steps.
        decisions: (D,) Steps at which a decision is learned.
        ee_pose: (T, 4, 4) Measured end-effector pose.
        openness: (T,) Measured opening of the gripper, 1 = open.
        target_pose: (T, 4, 4) Commanded end-effector pose.
        target_open: (T,) Commanded opening.
        K: (V, 3, 3) Camera intrinsics: in pixels as read, as fractions of the image in a `Dataset`.
        camera_pose: (T, V, 4, 4) Camera poses.
        present: (V,) bool, whether the demonstration has this view.
    """

    name: str
    instruction: str
    kept: np.ndarray
    decisions: np.ndarray
    ee_pose: np.ndarray
    openness: np.ndarray
    target_pose: np.ndarray
    target_open: np.ndarray
    K: np.ndarray
    camera_pose: np.ndarray
    present: np.ndarray

    def __len__(self) -> int:
        return len(self.kept)

    def chunk(self, step: int, horizon: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """The action chunk that begins at a step. After the end of the episode its last action repeats.

        Args:
            step: First step of the chunk.
            horizon: Number of actions.
            stride: Control steps from one action to the next.

        Returns:
            Commanded poses (horizon, 4, 4) and openness (horizon,).
        """
        steps = np.minimum(step + stride * np.arange(horizon), len(self) - 1)
        return self.target_pose[steps], self.target_open[steps]


def idle(demo: Demonstration) -> np.ndarray:
    """bool (T,): no-ops, except while the gripper is moving: the arm waits there for the grasp."""
    change = np.abs(np.diff(demo.openness, append=demo.openness[-1:]))
    return demo.noop & (change < GRIPPER_STILL)


def read_episode(demo: Demonstration, config: DataConfig) -> Episode:
    """Convert a demonstration for training.

    Args:
        demo: The demonstration; its images are not needed.
        config: Which cameras and steps are used.

    Returns:
        The episode. `decisions` is empty where every step with an image is a no-op.

    Raises:
        UserError: No camera, or not the reference camera, is calibrated; every step is a no-op; or a pose is not
            finite.
    """
    kept = np.flatnonzero(~idle(demo)) if config.drop_noops else np.arange(len(demo))
    if not len(kept):
        raise UserError(
            f"Demonstration {demo.info.episode} has no motion in any of its {len(demo)} steps. Remove it."
        )
    if not any(c in demo.cameras for c in config.cameras):
        raise UserError(
            f"Demonstration {demo.info.episode} has no calibration (K and pose) of the cameras "
            f"{', '.join(config.cameras)}. Actions are coded in a camera's axes. Collect with `apt-bench collect`, "
            "or use files with a `model_file`."
        )
    if config.reference and config.reference not in demo.cameras:
        raise UserError(
            f"Demonstration {demo.info.episode} has no calibration (K and pose) of the camera '{config.reference}', "
            f"in whose axes actions are coded (data.reference). Calibrated cameras: {', '.join(demo.cameras)}. Remove "
            "the demonstration, or choose another data.reference."
        )
    views, T = len(config.cameras), len(kept)
    K, pose, present = (
        np.tile(np.eye(3), (views, 1, 1)),
        np.tile(np.eye(4), (T, views, 1, 1)),
        np.zeros(views, bool),
    )
    for v, name in enumerate(config.cameras):
        if track := demo.cameras.get(name):
            K[v], pose[:, v], present[v] = track.K, track.pose[kept], True
    arrays = demo.achieved, demo.commanded, K
    recorded = demo.info.image_every
    if not all(np.isfinite(a).all() for a in arrays):
        raise UserError(f"Demonstration {demo.info.episode} holds NaN or infinity in its poses. Remove it.")
    return Episode(
        name=demo.info.episode,
        instruction=demo.info.instruction,
        kept=kept,
        decisions=np.flatnonzero(kept % recorded == 0)[:: -(-config.image_every // recorded)],
        ee_pose=demo.achieved[kept],
        openness=demo.openness[kept].astype(np.float64),
        target_pose=demo.commanded[kept],
        target_open=demo.gripper_target[kept],
        K=K,
        camera_pose=pose,
        present=present,
    )
