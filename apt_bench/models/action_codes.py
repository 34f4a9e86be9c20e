"""Encode action chunks as numbers for the network, and decode them.

A chunk is encoded relative to the *current* end-effector pose, in the axes of a reference camera, without any dataset
statistics. With current pose (R0, p0), camera (Rc, pc) and target (Rk, pk), openness o in [0, 1]:

    code = [ Rc^T (pk - p0) ; rot6d(Rc^T Rk R0^T Rc) ; 2 o - 1 ]          3 + 6 + 1 numbers, metres

This is the action format of the released APT code. All poses are 4x4 matrices that map their own frame to the world, in
metres. The code depends neither on the choice of the world frame nor on a constant rotation of the end-effector frame.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from apt_bench.core.config import Range

Stride = Annotated[int, Range(least=1, most=1000)]
"""Number of control steps between consecutive actions of a chunk."""

CODE_DIM = 10
POSITION, ROTATION, GRIPPER = slice(0, 3), slice(3, 9), slice(9, 10)


def rot6d(R: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 6): the first two ROWS of the rotation matrix."""
    return R[..., :2, :].flatten(-2)


def rot6d_to_matrix(code: Tensor) -> Tensor:
    """(..., 6) -> (..., 3, 3), by Gram-Schmidt on the two triples, which give the first two rows."""
    first = torch.nn.functional.normalize(code[..., :3], dim=-1)
    second = code[..., 3:] - (first * code[..., 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-2)


def make_pose(R: Tensor, p: Tensor) -> Tensor:
    """Rotation (..., 3, 3) and position (..., 3) -> pose (..., 4, 4)."""
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=R.dtype, device=R.device).expand(*R.shape[:-2], 1, 4)
    return torch.cat([torch.cat([R, p.unsqueeze(-1)], -1), bottom], -2)


def rigid_inverse(T: Tensor) -> Tensor:
    """Inverse of rigid transforms (..., 4, 4)."""
    Rt = T[..., :3, :3].transpose(-1, -2)
    return make_pose(Rt, -(Rt @ T[..., :3, 3:])[..., 0])


def encode_chunk(pose: Tensor, openness: Tensor, ee_pose: Tensor, ref_pose: Tensor) -> Tensor:
    """Encode an action chunk; see the module's docstring.

    Args:
        pose: Target end-effector poses, (..., T, 4, 4), metres.
        openness: Target gripper openness, (..., T), 0 = closed, 1 = open.
        ee_pose: Current end-effector pose, (..., 4, 4).
        ref_pose: Pose of the reference camera, (..., 4, 4).

    Returns:
        Codes, (..., T, 10).
    """
    R0, Rc = ee_pose[..., None, :3, :3], ref_pose[..., None, :3, :3]
    Rc_t = Rc.transpose(-1, -2)
    shift = (Rc_t @ (pose[..., :3, 3] - ee_pose[..., None, :3, 3]).unsqueeze(-1))[..., 0]
    turn = Rc_t @ pose[..., :3, :3] @ R0.transpose(-1, -2) @ Rc
    return torch.cat([shift, rot6d(turn), (2 * openness - 1).unsqueeze(-1)], -1)


def decode_chunk(code: Tensor, ee_pose: Tensor, ref_pose: Tensor) -> tuple[Tensor, Tensor]:
    """Decode an action chunk; the inverse of `encode_chunk`.

    Args:
        code: Codes, (..., T, 10).
        ee_pose: Current end-effector pose, (..., 4, 4).
        ref_pose: Pose of the reference camera, (..., 4, 4).

    Returns:
        Poses (..., T, 4, 4) in metres and gripper openness (..., T), which is not clipped to [0, 1].
    """
    R0, Rc = ee_pose[..., None, :3, :3], ref_pose[..., None, :3, :3]
    p = ee_pose[..., None, :3, 3] + (Rc @ code[..., POSITION].unsqueeze(-1))[..., 0]
    R = Rc @ rot6d_to_matrix(code[..., ROTATION]) @ Rc.transpose(-1, -2) @ R0
    return make_pose(R, p), code[..., 9] / 2 + 0.5


def position_in_camera(ee_pose: Tensor, ref_pose: Tensor) -> Tensor:
    """The end effector's position in the reference camera's frame, (..., 1, 3), m: Rc^T (p0 - pc)."""
    Rc_t = ref_pose[..., :3, :3].transpose(-1, -2)
    return (Rc_t @ (ee_pose[..., :3, 3:] - ref_pose[..., :3, 3:])).transpose(-1, -2)


def standstill(openness: Tensor) -> Tensor:
    """The code of the current pose itself: (...,) openness -> (..., 10) = (0,0,0, 1,0,0, 0,1,0, 2o-1)."""
    code = openness.new_zeros(*openness.shape, CODE_DIM)
    code[..., 3] = code[..., 7] = 1.0
    code[..., 9] = 2 * openness - 1
    return code
