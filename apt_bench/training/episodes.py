"""What training takes from one demonstration, and the settings that say what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from apt_bench.core.config import Count, Range, Share, check_fields
from apt_bench.core.errors import UserError
from apt_bench.demos.format import Demonstration
from apt_bench.envs.base import AGENTVIEW, WRIST
from apt_bench.models.actions import Stride
from apt_bench.training.augment import AugmentConfig

GRIPPER_STILL = 0.005
"""Change of openness per control step below which the gripper rests."""


Weight = Annotated[float, Range(above=0, most=1e9)]


@dataclass(frozen=True)
class DataConfig:
    """What is learned from.

    data: files or folders of demonstrations, or hub ids. weights: how often each is drawn from; () = equally.
    stride: control steps from one action of a chunk to the next. look_every: only every so many steps is a
    decision, which saves images and features; actions keep all steps. Where demonstrations were recorded with fewer
    looks, only these are. held_out: share of each dataset's episodes kept for validation. reference: the camera in
    whose axes actions are coded; empty = drawn per sample, as the release does. rotate_world: a random world frame per
    sample, as the release has (see `RobotState.recentred`).
    """

    data: tuple[str, ...] = ()
    weights: tuple[Weight, ...] = ()
    cameras: tuple[str, ...] = (AGENTVIEW, WRIST)
    stride: Stride = 1
    look_every: Count = 1
    drop_noops: bool = True
    held_out: Share = 0.05
    reference: str = ""
    rotate_world: bool = True
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        check_fields(self, "data")
        for name in ("data", "cameras"):
            several = getattr(self, name)
            if twice := next((v for i, v in enumerate(several) if v in several[:i]), None):
                raise UserError(
                    f"data.{name} names '{twice}' twice. To draw from data more often, give a weight."
                )
        if not self.cameras:
            raise UserError("data.cameras is empty; at least one camera is needed.")
        if self.weights and len(self.weights) != len(self.data):
            raise UserError(
                f"data.weights {self.weights}: expected one positive number for each of {len(self.data)} datasets."
            )
        if self.reference and self.reference not in self.cameras:
            raise UserError(
                f"data.reference '{self.reference}' is not among data.cameras {', '.join(self.cameras)}."
            )

    def weight(self, index: int) -> float:
        """How often dataset number `index` of `data` is drawn from, relative to the others."""
        return float(self.weights[index]) if self.weights else 1.0


@dataclass(frozen=True)
class Episode:
    """A demonstration without its images, at the steps that are kept. Poses to the world, metres.

    ee_pose, target_pose (T, 4, 4), openness, target_open (T,); K (V, 3, 3) in pixels as read, in fractions of
    the image in a `Dataset`; camera_pose (T, V, 4, 4); present (V,) bool. `kept` (T,): the steps of the
    demonstration that these are; `looks` (D,): those among them at which a decision is learned.
    """

    name: str
    instruction: str
    kept: np.ndarray
    looks: np.ndarray
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
        """Commanded poses (horizon, 4, 4) and openness (horizon,) from this step on; beyond the end the last
        repeats."""
        steps = np.minimum(step + stride * np.arange(horizon), len(self) - 1)
        return self.target_pose[steps], self.target_open[steps]


def idle(demo: Demonstration) -> np.ndarray:
    """bool (T,): no-ops, except while the gripper still moves: there the wait is what makes the grasp."""
    change = np.abs(np.diff(demo.openness, append=demo.openness[-1:]))
    return demo.noop & (change < GRIPPER_STILL)


def read_episode(demo: Demonstration, config: DataConfig) -> Episode:
    """A demonstration as training needs it. It may have no decision step: `looks` is empty where all steps at which
    images were recorded command nothing.

    Raises UserError for one without calibrated cameras, or without the reference camera's, or that does nothing."""
    kept = np.flatnonzero(~idle(demo)) if config.drop_noops else np.arange(len(demo))
    if not len(kept):
        raise UserError(
            f"Demonstration {demo.info.episode} does nothing in any of its {len(demo)} steps. Remove it."
        )
    if not any(c in demo.cameras for c in config.cameras):
        raise UserError(
            f"Demonstration {demo.info.episode} has no calibration (K and pose) of the cameras "
            f"{', '.join(config.cameras)}; actions are coded in a camera's axes. Collect with `apt-bench collect`, "
            "or use files with a `model_file`."
        )
    if config.reference and config.reference not in demo.cameras:
        raise UserError(
            f"Demonstration {demo.info.episode} has no calibration (K and pose) of the camera '{config.reference}', "
            f"in whose axes actions are to be coded (data.reference). It has that of {', '.join(demo.cameras)}. Remove "
            "it, or choose another data.reference."
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
    if not all(np.isfinite(a).all() for a in arrays):
        raise UserError(f"Demonstration {demo.info.episode} holds NaN or infinity in its poses. Remove it.")
    return Episode(
        name=demo.info.episode,
        instruction=demo.info.instruction,
        kept=kept,
        looks=np.flatnonzero(kept % demo.info.look_every == 0)[
            :: -(-config.look_every // demo.info.look_every)
        ],
        ee_pose=demo.achieved[kept],
        openness=demo.openness[kept].astype(np.float64),
        target_pose=demo.commanded[kept],
        target_open=demo.gripper_target[kept],
        K=K,
        camera_pose=pose,
        present=present,
    )
