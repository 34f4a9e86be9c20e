"""Inputs of an action expert: vision-language features and the robot's state.

Shapes: B samples, L vision-language tokens, V cameras, E arms, T actions per chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from apt_bench.models.action_codes import make_pose, position_in_camera, rigid_inverse

PAD, VISION, LANGUAGE, ACTION = 0, 1, 2, 3  # token types; LANGUAGE includes the chat template

R = TypeVar("R", bound="TensorRecord")


class TensorRecord:
    """A frozen dataclass of tensors."""

    def map(self: R, fn: Callable[[Tensor], Tensor]) -> R:
        """Apply `fn` to every tensor."""

        def walk(value: object) -> object:
            if isinstance(value, Tensor):
                return fn(value)
            if isinstance(value, dict):
                return {k: walk(v) for k, v in value.items()}
            return tuple(walk(v) for v in value) if isinstance(value, tuple) else value

        fields = {f.name: walk(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return type(self)(**fields)

    def to(self: R, device: torch.device | str) -> R:
        """Move every tensor to a device."""
        return self.map(lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class VLFeatures(TensorRecord):
    """Features of a vision-language model for a batch of prompts (images, then the instruction).

    Attributes:
        embeds: (B, L, C), the input embeddings, with image features at the visual tokens.
        taps: (n, B, L, C), outputs of the decoder layers in `layers`.
        layers: Indices of the n tapped decoder layers.
        token_type: (B, L), PAD, VISION or LANGUAGE. A visual token that covers only letterbox bars is PAD.
        view: (B, L), index of the camera of a visual token, -1 for other tokens.
        uv: (B, L, 2), centre of a visual token's patch, as fractions of the image's width and height.
        kv: Keys and values of each layer, each (B, L, kv_heads, head_dim), after the model's own rotary code. Only for
            the pi-style expert.
        position: (B, L), the rotary positions of the tokens.
    """

    embeds: Tensor
    taps: Tensor
    layers: tuple[int, ...]
    token_type: Tensor
    view: Tensor
    uv: Tensor
    kv: tuple[tuple[Tensor, Tensor], ...] = ()
    position: Tensor | None = None

    @property
    def is_visual(self) -> Tensor:
        """(B, L) bool: visual tokens, including those of type PAD."""
        return self.view >= 0

    def tap(self, layer: int) -> Tensor:
        """The output of decoder layer `layer`, (B, L, C)."""
        return self.taps[self.layers.index(layer)]

    def at(self, chosen: Tensor) -> VLFeatures:
        """The features of some text tokens, without keys and values. chosen: (B, L) bool, K tokens in every row."""
        B, K = len(chosen), int(chosen[0].sum())
        place = chosen.nonzero()[:, 1].reshape(B, K, 1).expand(-1, -1, self.embeds.shape[-1])
        return VLFeatures(
            embeds=self.embeds.gather(1, place),
            taps=self.taps.gather(2, place.expand(len(self.taps), -1, -1, -1)),
            layers=self.layers,
            token_type=torch.full((B, K), LANGUAGE, device=chosen.device),
            view=torch.full((B, K), -1, device=chosen.device),
            uv=self.uv.new_zeros(B, K, 2),
        )


@dataclass(frozen=True)
class RobotState(TensorRecord):
    """Cameras and arms at a decision. Poses map to the world frame, in metres.

    Attributes:
        camera_pose: (B, V, 4, 4), OpenCV axes.
        intrinsics: (B, V, 3, 3), for coordinates in fractions of the image; see `fractional_intrinsics`.
        camera_present: (B, V) bool.
        ee_pose: (B, E, 4, 4), end-effector poses.
        ref_pose: (B, E, 4, 4), pose of each arm's reference camera, in whose axes actions are encoded.
        openness: (B, E), gripper, 0 = closed, 1 = open.
        arm_valid: (B, E) bool.
    """

    camera_pose: Tensor
    intrinsics: Tensor
    camera_present: Tensor
    ee_pose: Tensor
    ref_pose: Tensor
    openness: Tensor
    arm_valid: Tensor

    @cached_property
    def ee_in_camera(self) -> Tensor:
        """Each arm's end-effector position in the frame of its reference camera, (B, E, 1, 3), m."""
        return position_in_camera(self.ee_pose, self.ref_pose)

    def recentred(self, rotation: Tensor | None = None) -> RobotState:
        """Move the world's origin to the mean camera position and rotate the world by `rotation` (B, 3, 3).

        This keeps numbers small. It changes the network's output only where absolute poses are an input (`insertion:
        tokens`), where it is an augmentation. Elsewhere only relative poses are used.
        """
        weight = self.camera_present.float()[..., None]
        mean = (self.camera_pose[..., :3, 3] * weight).sum(1) / weight.sum(1).clamp(min=1)
        if rotation is None:
            rotation = torch.eye(3, device=mean.device).expand(len(mean), 3, 3)
        return self.moved(rigid_inverse(make_pose(rotation, mean)))

    def moved(self, transform: Tensor) -> RobotState:
        """Multiply every pose from the left by `transform` (B, 4, 4)."""
        T = transform[:, None]
        return dataclasses.replace(
            self, camera_pose=T @ self.camera_pose, ee_pose=T @ self.ee_pose, ref_pose=T @ self.ref_pose
        )


def random_rotations(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniformly distributed rotations (count, 3, 3), from quaternions (w, x, y, z) that are normalised Gaussians."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def fractional_intrinsics(K: Tensor, width: int, height: int) -> Tensor:
    """Convert pixel intrinsics (..., 3, 3) to fractions of the image.

    In fractions, the left (top) edge is 0 and the right (bottom) edge is 1. In pixels, pixel centres are integers, so
    the left edge is -0.5."""
    size = torch.tensor([width, height], dtype=K.dtype, device=K.device)
    out = K.clone()
    out[..., 0, 0], out[..., 1, 1] = K[..., 0, 0] / width, K[..., 1, 1] / height
    out[..., :2, 2] = (K[..., :2, 2] + 0.5) / size
    return out


def image_plane(features: VLFeatures, robot: RobotState) -> Tensor:
    """Normalised image-plane coordinates ((u - cx)/fx, (v - cy)/fy) of every visual token's centre, (B, L, 2).

    0 for other tokens. It equals the mean over the token's pixels, as the coordinates are linear in the pixel."""
    view = features.view.clamp(min=0)
    K = robot.intrinsics[torch.arange(len(view), device=view.device)[:, None], view]
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)
    return torch.where(features.is_visual[..., None], (features.uv - K[..., :2, 2]) / focal, 0.0)


BELOW_CAMERA = 0.4
"""Least distance in m of a sample's plane from its highest camera."""


def plane_heights(planes: Sequence[float], robot: RobotState) -> Tensor:
    """Height (m, world z) of each sample's plane, (B,): the highest of `planes` (ascending) that is BELOW_CAMERA below
    the highest camera, or the lowest one."""
    cameras = torch.where(robot.camera_present, robot.camera_pose[..., 2, 3], -torch.inf)
    heights = cameras.new_tensor(planes)
    low = heights + BELOW_CAMERA <= cameras.amax(1, keepdim=True)
    return heights[(low.sum(1) - 1).clamp(min=0)]


def plane_points(features: VLFeatures, robot: RobotState, height: Tensor, reach: float = 1.0) -> Tensor:
    """Points where the visual tokens' rays meet the plane z = `height` (B,), m, of the world, (B, L, 3), metres.

    Points are relative to the first arm's end effector, in the axes of its reference camera, as in action codes. Each
    coordinate is clipped to [-reach, reach]. A ray that does not meet the plane in front of the camera counts as very
    long. Other tokens have 0."""
    batch = torch.arange(len(features.view), device=features.view.device)[:, None]
    camera = robot.camera_pose[batch, features.view.clamp(min=0)]
    xy = image_plane(features, robot)
    ray = (camera[..., :3, :3] @ torch.cat([xy, torch.ones_like(xy[..., :1])], -1)[..., None])[..., 0]
    start = camera[..., :3, 3]
    steps = (height[:, None] - start[..., 2]) / ray[..., 2].clamp(max=-1e-3)  # the plane is below the camera
    point = start + steps.clamp(min=0)[..., None] * ray
    axes = robot.ref_pose[:, 0, None, :3, :3].transpose(-1, -2)
    local = (axes @ (point - robot.ee_pose[:, 0, None, :3, 3])[..., None])[..., 0]
    return torch.where(features.is_visual[..., None], local.clamp(-reach, reach), 0.0)
