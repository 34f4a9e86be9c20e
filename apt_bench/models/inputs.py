"""What an action expert is given: vision-language features and the robot's state.

Everything is batched: B samples, L vision-language tokens, V cameras, E arms, T steps of the horizon.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from apt_bench.models.action_codes import make_pose, rigid_inverse

PAD, VISION, LANGUAGE, ACTION = 0, 1, 2, 3  # token types; "language" includes the chat template

R = TypeVar("R", bound="TensorRecord")


class TensorRecord:
    """A frozen dataclass of tensors that moves as one."""

    def map(self: R, fn: Callable[[Tensor], Tensor]) -> R:
        """The record with `fn` applied to every tensor in it."""

        def walk(value: object) -> object:
            if isinstance(value, Tensor):
                return fn(value)
            if isinstance(value, dict):
                return {k: walk(v) for k, v in value.items()}
            return tuple(walk(v) for v in value) if isinstance(value, tuple) else value

        fields = {f.name: walk(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return type(self)(**fields)

    def to(self: R, device: torch.device | str) -> R:
        """The record on another device."""
        return self.map(lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class VLFeatures(TensorRecord):
    """What a vision-language model says about one prompt (images, then the instruction).

    embeds: (B, L, C) its input embeddings with the image features spliced in. taps: (n, B, L, C) outputs of the decoder
    layers named in `layers`. token_type: (B, L) PAD (also: a visual token nothing valid is seen through), VISION or
    LANGUAGE. view: (B, L) index of the camera a visual token belongs to, -1 elsewhere. uv: (B, L, 2) centre of a visual
    token's patch, as a fraction of the image's width and height. kv: per layer (keys, values), each (B, L, kv_heads,
    head_dim), after the model's own rotary code; only for the pi-style expert. position: (B, L) the rotary positions.
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
        """(B, L) bool: visual tokens, valid or not."""
        return self.view >= 0

    def tap(self, layer: int) -> Tensor:
        """Output of decoder layer `layer`, (B, L, C)."""
        return self.taps[self.layers.index(layer)]

    def at(self, chosen: Tensor) -> VLFeatures:
        """Of some text tokens alone: chosen (B, L) bool, equally many (K) in each row; without keys and values."""
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
    """Cameras and arms at the moment of decision. Poses map to the world, metres.

    camera_pose: (B, V, 4, 4), OpenCV axes. intrinsics: (B, V, 3, 3) in fractions of the image
    (`fractional_intrinsics`). camera_present: (B, V) bool. ee_pose: (B, E, 4, 4). ref_pose: (B, E, 4, 4) the
    camera in whose axes actions are coded. openness: (B, E) gripper, 0 closed ... 1 open. arm_valid: (B, E) bool.
    """

    camera_pose: Tensor
    intrinsics: Tensor
    camera_present: Tensor
    ee_pose: Tensor
    ref_pose: Tensor
    openness: Tensor
    arm_valid: Tensor

    def recentred(self, rotation: Tensor | None = None) -> RobotState:
        """The same state in a world whose origin is the mean camera, turned by `rotation` (B, 3, 3).

        Numerically kind, and a true augmentation only where absolute poses are seen (token insertion); everywhere else
        poses enter as relative ones and the network's output does not depend on it.
        """
        weight = self.camera_present.float()[..., None]
        mean = (self.camera_pose[..., :3, 3] * weight).sum(1) / weight.sum(1).clamp(min=1)
        if rotation is None:
            rotation = torch.eye(3, device=mean.device).expand(len(mean), 3, 3)
        return self.moved(rigid_inverse(make_pose(rotation, mean)))

    def moved(self, transform: Tensor) -> RobotState:
        """Every pose multiplied from the left by `transform` (B, 4, 4)."""
        T = transform[:, None]
        return dataclasses.replace(
            self, camera_pose=T @ self.camera_pose, ee_pose=T @ self.ee_pose, ref_pose=T @ self.ref_pose
        )


def random_rotations(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform rotations (count, 3, 3) from normalised 4-D Gaussians, quaternions (w, x, y, z)."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def fractional_intrinsics(K: Tensor, width: int, height: int) -> Tensor:
    """Pixel intrinsics (..., 3, 3) -> intrinsics for coordinates that are 0 at the left (top) edge and 1 at the right
    (bottom) one. Pixel centres lie at integers, so the left edge is at -0.5."""
    size = torch.tensor([width, height], dtype=K.dtype, device=K.device)
    out = K.clone()
    out[..., 0, 0], out[..., 1, 1] = K[..., 0, 0] / width, K[..., 1, 1] / height
    out[..., :2, 2] = (K[..., :2, 2] + 0.5) / size
    return out


def image_plane(features: VLFeatures, robot: RobotState) -> Tensor:
    """Normalised image-plane coordinates ((u - cx)/fx, (v - cy)/fy) of every visual token's centre, 0 elsewhere.

    (B, L, 2). Equals the mean over the token's pixel grid, as the coordinates are linear in the pixel."""
    view = features.view.clamp(min=0)
    K = robot.intrinsics[torch.arange(len(view), device=view.device)[:, None], view]
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)
    return torch.where(features.is_visual[..., None], (features.uv - K[..., :2, 2]) / focal, 0.0)


def plane_points(features: VLFeatures, robot: RobotState, height: float, reach: float = 1.0) -> Tensor:
    """Where each visual token's ray meets the plane z = `height` (m) of the world, relative to the first arm's end
    effector, in the axes of its reference camera, as action codes are: (B, L, 3), metres.

    Cut to `reach` per axis; rays that meet no plane before them count as very long. 0 at other tokens."""
    batch = torch.arange(len(features.view), device=features.view.device)[:, None]
    camera = robot.camera_pose[batch, features.view.clamp(min=0)]
    xy = image_plane(features, robot)
    ray = (camera[..., :3, :3] @ torch.cat([xy, torch.ones_like(xy[..., :1])], -1)[..., None])[..., 0]
    start = camera[..., :3, 3]
    steps = (height - start[..., 2]) / ray[..., 2].clamp(max=-1e-3)  # the plane lies below
    point = start + steps.clamp(min=0)[..., None] * ray
    axes = robot.ref_pose[:, 0, None, :3, :3].transpose(-1, -2)
    local = (axes @ (point - robot.ee_pose[:, 0, None, :3, 3])[..., None])[..., 0]
    return torch.where(features.is_visual[..., None], local.clamp(-reach, reach), 0.0)
