"""The policy `apt`: a trained VLA network (APT, or a rival architecture) that answers observations with action
chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.errors import UserError
from apt_bench.models import checkpoint
from apt_bench.models.actions import (
    CODE_DIM,
    control_action,
    decode_chunk,
    make_pose,
    rotation_matrix,
)
from apt_bench.models.inputs import RobotState, fractional_intrinsics
from apt_bench.models.vla import VLA
from apt_bench.policies.base import PolicySpec

CONTROL_SCALE = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])  # metres, rad per unit of action
PANDA_OPENING = 0.08  # metres between the finger joints' positions when fully open
TRACKING = (
    0.25  # share of a commanded displacement that the arm covers in one control step, measured in LIBERO
)
OPEN_ABOVE = 0.8  # predicted openness from which the gripper is told to open


class AptPolicy:
    """Predicts 32 end-effector poses and answers with the control actions that lead along them.

    The released evaluator converts each predicted pose against the live pose just before it is executed. A chunk is
    answered in one piece, so only its first action can be; for the later ones the live pose is foreseen. The
    operational space controller covers only part of a commanded distance within one control step, so the arm is
    expected to go live <- live + tracking * (target - live). `tracking=1` would mean that every target is reached, and
    the actions would be the differences of consecutive targets: far too small commands, because commanded poses lie
    ahead of the arm. docs/model.md gives the measurement behind the default.

    The reference camera is drawn per decision, as in training, or the one that the checkpoint was trained with. All
    draws are seeded by (episode, step, seed): a batch equals the single calls up to float32 rounding, and a rerun
    equals the first run.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        device: str | None = None,
        cameras: tuple[str, ...] = (AGENTVIEW, WRIST),
        execute: int = 3,
        tracking: float = TRACKING,
        seed: int = 0,
        model: VLA | None = None,
    ) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = (model or checkpoint.load(weights)).to(self.device).eval()
        horizon = self.model.expert.config.horizon
        if not 1 <= execute <= horizon:
            raise UserError(f"Policy apt: execute={execute}; its chunks have {horizon} steps.")
        self.seed, self.tracking = seed, tracking
        reference = "" if model else str(checkpoint.provenance(weights).get("reference", ""))
        if reference and reference not in cameras:
            raise UserError(
                f"Policy apt: {weights} codes its actions in the axes of '{reference}', which is not among the cameras "
                f"{', '.join(cameras)}."
            )
        self._reference = cameras.index(reference) if reference else None
        self.spec = PolicySpec(
            name="apt",
            cameras=cameras,
            horizon=horizon,
            execute=execute,
            num_gpus=1.0 if self.device.startswith("cuda") else 0.0,
            weights=str(weights),
            weights_sha256=None if model else checkpoint.sha256(weights),
            about={} if model else checkpoint.about(weights),
        )

    def reset(self, episodes: Sequence[str]) -> None:
        """Nothing is kept between decisions."""

    @torch.no_grad()
    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """One chunk (horizon, 7) per observation."""
        cameras = self.spec.cameras
        for obs in observations:
            if missing := [c for c in cameras if c not in obs.images or c not in obs.cameras]:
                raise UserError(
                    f"Policy apt needs image and calibration of {missing}; it got {sorted(obs.images)}."
                )
        draws = [self._draw(obs) for obs in observations]
        robot = _robot_state(observations, cameras, [camera for camera, _ in draws])
        prompt = self.model.vlm.prepare(
            [[obs.images[c] for c in cameras] for obs in observations],
            [obs.instruction for obs in observations],
            blind=self.model.blind,
        )
        features = self.model.features(prompt.to(self.device))
        noise = torch.stack([noise for _, noise in draws])[:, None]
        codes = self.model.expert.sample(features, robot.to(self.device), noise.to(self.device)).cpu()
        poses, openness = decode_chunk(codes.double(), robot.ee_pose.double(), robot.ref_pose.double())
        live = robot.ee_pose[:, 0].double().numpy()
        return [
            follow(pose, opening, start, self.tracking)
            for pose, opening, start in zip(poses[:, 0].numpy(), openness[:, 0].numpy(), live, strict=True)
        ]

    def _draw(self, obs: Observation) -> tuple[int, Tensor]:
        """Reference camera and noise (horizon, 10) of one decision."""
        digest = hashlib.sha256(f"{self.seed}/{obs.episode}/{obs.step}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        camera = int(torch.randint(len(self.spec.cameras), (1,), generator=generator))
        if self._reference is not None:
            camera = self._reference
        return camera, torch.randn(self.spec.horizon, CODE_DIM, generator=generator)


def follow(
    targets: np.ndarray, openness: np.ndarray, live: np.ndarray, tracking: float = TRACKING
) -> np.ndarray:
    """Actions (T, 7) along target poses (T, 4, 4) from the pose `live` (4, 4), see `AptPolicy`. Not clipped, but the
    foreseen arm does not move further than a clipped action takes it."""
    actions = []
    for target, opening in zip(targets, openness, strict=True):
        action = control_action(target, opening, live, CONTROL_SCALE, OPEN_ABOVE)
        actions.append(action)
        step = tracking * np.clip(action[:6], -1, 1) * CONTROL_SCALE
        ahead = np.eye(4)
        ahead[:3, 3] = live[:3, 3] + step[:3]
        ahead[:3, :3] = rotation_matrix(step[3:]) @ live[:3, :3]
        live = ahead
    return np.stack(actions)


def _robot_state(
    observations: Sequence[Observation], cameras: tuple[str, ...], reference: list[int]
) -> RobotState:
    state = np.stack([obs.state for obs in observations]).astype(np.float64)
    ee = make_pose(torch.from_numpy(rotation_matrix(state[:, 3:6])), torch.from_numpy(state[:, :3])).float()
    poses = np.stack([[obs.cameras[c].pose for c in cameras] for obs in observations])
    camera_pose = torch.from_numpy(poses).float()
    intrinsics = torch.stack(
        [
            torch.stack(
                [
                    fractional_intrinsics(
                        torch.as_tensor(obs.cameras[c].K).float(), *obs.images[c].shape[1::-1]
                    )
                    for c in cameras
                ]
            )
            for obs in observations
        ]
    )
    opening = torch.from_numpy((state[:, 6] - state[:, 7]) / PANDA_OPENING).clamp(0, 1).float()
    n = len(observations)
    return RobotState(
        camera_pose=camera_pose,
        intrinsics=intrinsics,
        camera_present=torch.ones(n, len(cameras), dtype=torch.bool),
        ee_pose=ee[:, None],
        ref_pose=camera_pose[torch.arange(n), torch.tensor(reference)][:, None],
        openness=opening[:, None],
        arm_valid=torch.ones(n, 1, dtype=torch.bool),
    )
