"""The policy `apt`: a trained VLA network (APT or a baseline) that predicts chunks of end-effector poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from apt_bench.core.config import Count, Natural, Range, build
from apt_bench.core.errors import UserError
from apt_bench.envs.base import AGENTVIEW, WRIST, Observation, unmirrored
from apt_bench.models import checkpoint
from apt_bench.models.action_codes import CODE_DIM, Stride, decode_chunk, make_pose
from apt_bench.models.diffusion import SAMPLE_STEPS, TRAIN_STEPS
from apt_bench.models.inputs import RobotState, fractional_intrinsics
from apt_bench.models.traced import Traced
from apt_bench.models.vla import VLA
from apt_bench.models.vlm import Prompt
from apt_bench.policies.base import PolicySpec, Provenance, Resources, Steps, noise_seed
from apt_bench.policies.preprocessing import shrink
from apt_bench.suites import EpisodeSpec

PANDA_OPENING = 0.08  # m between the finger joints' positions with the gripper fully open
OPEN_ABOVE = 0.8  # predicted openness above which the gripper opens


Pixels = Annotated[int, Range(least=1, most=4096)]


@dataclass(frozen=True)
class Trained:
    """The data that a checkpoint was trained on, see `checkpoint.provenance`. The defaults apply where it has no such
    entry, as in the authors' files. image_size: height and width; None: the images differed in size."""

    stride: Stride = 1
    image_size: tuple[Pixels, Pixels] | None = None
    cameras: tuple[str, ...] = (AGENTVIEW, WRIST)
    reference: str = ""

    @staticmethod
    def read(weights: str | Path) -> Trained:
        """Read them from a checkpoint. Raises UserError, naming the entry, for an invalid value."""
        said = checkpoint.provenance(weights)
        found: Trained = build(
            Trained,
            {f.name: said[f.name] for f in fields(Trained) if f.name in said},
            f"{weights}: {checkpoint.PROVENANCE}",
        )
        return found


class AptPolicy:
    """A trained network. Each chunk has one end-effector pose per control step (`PolicySpec.actions` is "pose"), as in
    the authors' evaluator.

    The cameras, the image size and the control steps between two predicted poses (the stride; poses between them are
    interpolated) are those of the checkpoint's training. Mirrored images are mirrored back, as in training. The
    reference camera is the one of the training; where the training drew it, it is drawn for each decision.

    All draws are seeded by (noise key, control step, seed). The same scene with the same instruction therefore gets the
    same chunk, bit for bit, in any cell and under any prompt name. A batch equals single calls up to float32 rounding
    only, and a rollout amplifies the difference. So `max_batch` is 1 on a CPU, where a batch saves little, and 16 on a
    GPU; `max_batch=1` makes results exact there too.

    Args:
        weights: Checkpoint folder, hub id, the authors' file, or the name of a shipped checkpoint.
        device: Name of a torch device; None = "cuda" where there is one, otherwise "cpu".
        cameras: Cameras instead of those of the training, which the authors' files do not name.
        execute: Execute horizon.
        sample_steps: Denoising steps per decision; a divisor of the noise levels of training.
        seed: Seed of the noise.
        max_batch: Observations in one call, at most; None = the default above.
        precision: `bf16` computes matrix products in bfloat16 (autocast). It is faster on large networks, and predicts
            slightly other actions.
        model: The network, instead of loading `weights`.

    Raises:
        UserError: An argument is outside its range, or does not fit the checkpoint.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        device: str | None = None,
        cameras: Sequence[str] | None = None,
        execute: int = 3,
        sample_steps: int = SAMPLE_STEPS,
        seed: int = 0,
        max_batch: int | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        model: VLA | None = None,
    ) -> None:
        execute = build(Steps, execute, "execute")
        sample_steps = build(Count, sample_steps, "sample_steps")
        self.seed: int = build(Natural, seed, "seed")
        chosen: tuple[str, ...] | None = build(tuple[str, ...] | None, cameras, "cameras")
        self.device = build(str | None, device, "device") or ("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self.device.startswith("cuda")
        self.model = (model or checkpoint.load(weights)).to(self.device).eval()
        trained = Trained() if model else Trained.read(weights)
        self.stride, self.size = trained.stride, trained.image_size
        horizon = (self.model.expert.config.horizon - 1) * self.stride + 1
        if execute > horizon:
            raise UserError(f"execute={execute}; the policy's chunks have {horizon} steps.")
        if TRAIN_STEPS % sample_steps:
            raise UserError(
                f"sample_steps={sample_steps} must divide the {TRAIN_STEPS} noise levels of training."
            )
        self.sample_steps = sample_steps
        self._half = build(Literal["fp32", "bf16"], precision, "precision") == "bf16"
        expert = self.model.expert
        self._traced: dict[str, Any] = {}
        if self.device == "cpu" and not self._half:  # under autocast, tracing is not tested
            self._traced = {
                "encode_context": Traced(expert.encode_context, expert),
                "denoise": Traced(expert.denoise, expert),
            }
        views, reference = chosen or trained.cameras, trained.reference
        if not views:
            raise UserError(f"{weights} names no camera. Give --policy-arg cameras=[{AGENTVIEW}].")
        if reference and reference not in views:
            raise UserError(
                f"{weights} encodes its actions in the frame of the camera '{reference}', which is not among the "
                f"cameras {', '.join(views)}. Add it to --policy-arg cameras=[...]."
            )
        self._reference = views.index(reference) if reference else None
        self.spec = PolicySpec(
            name="apt",
            cameras=views,
            horizon=horizon,
            execute=execute,
            actions="pose",
            resources=Resources(
                num_gpus=float(on_gpu),
                max_batch=build(Count | None, max_batch, "max_batch") or (16 if on_gpu else 1),
            ),
            provenance=Provenance(
                weights=str(weights),
                weights_sha256=None if model else checkpoint.sha256(weights),
                about={} if model else checkpoint.about(weights),
            ),
        )

    @staticmethod
    def digest(weights: str | Path, **others: object) -> str:
        """Hash of the weights, found without loading them. It shows whether a finished run used these weights."""
        return checkpoint.sha256(weights)

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Nothing is kept between decisions."""

    @torch.inference_mode()
    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """One chunk of poses (horizon, 7) per observation, see `Policy`."""
        draws = [self._draw(obs) for obs in observations]
        prompt, robot = self.inputs(observations, [camera for camera, _ in draws])
        noise = torch.stack([noise for _, noise in draws])[:, None]
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self._half):
            features = self.model.features(prompt.to(self.device))
            codes = self.model.expert.sample(
                features, robot.to(self.device), noise.to(self.device), self.sample_steps, **self._traced
            ).cpu()
        poses, openness = decode_chunk(codes.double(), robot.ee_pose.double(), robot.ref_pose.double())
        return [
            steps(pose, opening, self.stride)
            for pose, opening in zip(poses[:, 0].numpy(), openness[:, 0].numpy(), strict=True)
        ]

    def inputs(
        self, observations: Sequence[Observation], reference: Sequence[int]
    ) -> tuple[Prompt, RobotState]:
        """The inputs of the network, on the CPU. `reference`: index of each observation's reference camera."""
        seen = [[self._view(obs, camera) for camera in self.spec.cameras] for obs in observations]
        prompt = self.model.vlm.prepare(
            [[image for image, _ in views] for views in seen],
            [obs.instruction for obs in observations],
            blind=self.model.blind,
        )
        poses = np.stack([[obs.cameras[c].pose for c in self.spec.cameras] for obs in observations])
        camera_pose = torch.from_numpy(poses).float()
        state = np.stack([obs.state for obs in observations]).astype(np.float64)
        turn = torch.from_numpy(Rotation.from_rotvec(state[:, 3:6]).as_matrix())
        opening = torch.from_numpy((state[:, 6] - state[:, 7]) / PANDA_OPENING).clamp(0, 1).float()
        n, views = camera_pose.shape[:2]
        robot = RobotState(
            camera_pose=camera_pose,
            intrinsics=torch.stack([torch.stack([K for _, K in views]) for views in seen]),
            camera_present=torch.ones(n, views, dtype=torch.bool),
            ee_pose=make_pose(turn, torch.from_numpy(state[:, :3])).float()[:, None],
            ref_pose=camera_pose[torch.arange(n), torch.tensor(reference)][:, None],
            openness=opening[:, None],
            arm_valid=torch.ones(n, 1, dtype=torch.bool),
        )
        return prompt, robot

    def _view(self, obs: Observation, camera: str) -> tuple[np.ndarray, Tensor]:
        """A camera's image as in training, and its intrinsics as fractions of the image size."""
        if camera not in obs.images or camera not in obs.cameras:
            raise UserError(
                f"needs image and calibration of '{camera}'; the observation has {', '.join(obs.cameras) or 'none'}."
            )
        image, K = unmirrored(obs.images[camera], obs.cameras[camera].K)
        height, width = image.shape[:2]
        intrinsics = fractional_intrinsics(torch.as_tensor(K), width, height).float()
        if self.size and max(height, width) > max(self.size):
            if height != width or self.size[0] != self.size[1] or height % self.size[0]:
                raise UserError(
                    f"was trained on images of {self.size[1]}x{self.size[0]} pixels. Those of '{camera}', "
                    f"{width}x{height}, cannot be reduced to that size by a whole factor."
                )
            image = shrink(image, self.size[0])
        return image, intrinsics

    def _draw(self, obs: Observation) -> tuple[int, Tensor]:
        """Reference camera and noise (horizon, 10) of one decision."""
        generator = torch.Generator().manual_seed(noise_seed(obs, self.seed))
        camera = int(torch.randint(len(self.spec.cameras), (1,), generator=generator))
        if self._reference is not None:
            camera = self._reference
        return camera, torch.randn(self.model.expert.config.horizon, CODE_DIM, generator=generator)


def steps(poses: np.ndarray, openness: np.ndarray, stride: int = 1) -> np.ndarray:
    """Predicted poses as the rows of a chunk.

    Args:
        poses: Poses (T, 4, 4), `stride` control steps apart.
        openness: Openness of the gripper (T,), 1 = fully open.
        stride: Control steps between two poses. Between them, positions are interpolated linearly and rotations along
            the shortest arc.

    Returns:
        Rows ((T - 1) * stride + 1, 7): position (m), rotation vector (rad), -1 (open) or +1 (close).
    """
    known = stride * np.arange(len(poses))
    at = np.arange(known[-1] + 1)
    position = np.stack([np.interp(at, known, poses[:, i, 3]) for i in range(3)], -1)
    turn = Rotation.from_matrix(poses[:, :3, :3])
    turn = Slerp(known, turn)(at) if stride > 1 else turn
    close = np.where(np.interp(at, known, openness) > OPEN_ABOVE, -1.0, 1.0)
    return np.concatenate([position, turn.as_rotvec(), close[:, None]], -1)
