"""Action chunks as numbers: pose codes for the network, control actions for the robot.

A chunk is coded relative to the *current* end-effector pose, in the axes of a reference camera, without any dataset
statistics. With current pose (R0, p0), camera (Rc, pc) and target (Rk, pk), openness o in [0, 1]:

    code = [ Rc^T (pk - p0) ; rot6d(Rc^T Rk R0^T Rc) ; 2 o - 1 ]          3 + 6 + 1 numbers, metres

(released APT). All poses are 4x4, metres, and map their own frame to the world. The code does not depend
on the choice of world frame, nor on a constant rotation of the end-effector frame.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CODE_DIM = 10
POSITION, ROTATION, GRIPPER = slice(0, 3), slice(3, 9), slice(9, 10)


def rot6d(R: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 6): the first two ROWS of the rotation matrix."""
    return R[..., :2, :].flatten(-2)


def rot6d_to_matrix(code: Tensor) -> Tensor:
    """(..., 6) -> (..., 3, 3), by Gram-Schmidt on the two triples, which become the first two rows."""
    first = torch.nn.functional.normalize(code[..., :3], dim=-1)
    second = code[..., 3:] - (first * code[..., 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-2)


def make_pose(R: Tensor, p: Tensor) -> Tensor:
    """(..., 3, 3) and (..., 3) -> (..., 4, 4)."""
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=R.dtype, device=R.device).expand(*R.shape[:-2], 1, 4)
    return torch.cat([torch.cat([R, p.unsqueeze(-1)], -1), bottom], -2)


def rigid_inverse(T: Tensor) -> Tensor:
    """Inverse of rigid transforms (..., 4, 4)."""
    Rt = T[..., :3, :3].transpose(-1, -2)
    return make_pose(Rt, -(Rt @ T[..., :3, 3:])[..., 0])


def encode_chunk(pose: Tensor, openness: Tensor, ee_pose: Tensor, ref_pose: Tensor) -> Tensor:
    """Code targets `pose` (..., T, 4, 4) and `openness` (..., T) against `ee_pose`, `ref_pose` (..., 4, 4)."""
    R0, Rc = ee_pose[..., None, :3, :3], ref_pose[..., None, :3, :3]
    Rc_t = Rc.transpose(-1, -2)
    shift = (Rc_t @ (pose[..., :3, 3] - ee_pose[..., None, :3, 3]).unsqueeze(-1))[..., 0]
    turn = Rc_t @ pose[..., :3, :3] @ R0.transpose(-1, -2) @ Rc
    return torch.cat([shift, rot6d(turn), (2 * openness - 1).unsqueeze(-1)], -1)


def decode_chunk(code: Tensor, ee_pose: Tensor, ref_pose: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `encode_chunk`: codes (..., T, 10) -> poses (..., T, 4, 4) and openness (..., T), not clipped."""
    R0, Rc = ee_pose[..., None, :3, :3], ref_pose[..., None, :3, :3]
    p = ee_pose[..., None, :3, 3] + (Rc @ code[..., POSITION].unsqueeze(-1))[..., 0]
    R = Rc @ rot6d_to_matrix(code[..., ROTATION]) @ Rc.transpose(-1, -2) @ R0
    return make_pose(R, p), code[..., 9] / 2 + 0.5


def camera_position(code: Tensor, ee_pose: Tensor, ref_pose: Tensor) -> Tensor:
    """Where a code puts the end effector, in the reference camera's frame: Rc^T (p0 - pc) + t. (..., T, 3), metres."""
    Rc_t = ref_pose[..., :3, :3].transpose(-1, -2)
    here = (Rc_t @ (ee_pose[..., :3, 3:] - ref_pose[..., :3, 3:])).transpose(-1, -2)
    return here + code[..., POSITION]


def standstill(openness: Tensor) -> Tensor:
    """The code of the current pose itself: (...,) openness -> (..., 10) = (0,0,0, 1,0,0, 0,1,0, 2o-1)."""
    code = openness.new_zeros(*openness.shape, CODE_DIM)
    code[..., 3] = code[..., 7] = 1.0
    code[..., 9] = 2 * openness - 1
    return code


def rotation_vector(R: np.ndarray) -> np.ndarray:
    """Axis times angle of rotation matrices (..., 3, 3), angle in [0, pi], rad; exact near 0 and near pi.

    Through the quaternion (w, x, y, z), taking the largest of its four components first."""
    m = np.asarray(R, dtype=np.float64)
    d = np.diagonal(m, axis1=-2, axis2=-1)
    four = np.stack([d.sum(-1), *np.moveaxis(2 * d - d.sum(-1, keepdims=True), -1, 0)], -1)  # 4 q_i^2 - 1
    big = four.argmax(-1)
    a, b, c = (m[..., i, j] for i, j in ((2, 1), (0, 2), (1, 0)))
    e, f, g = (m[..., i, j] for i, j in ((1, 2), (2, 0), (0, 1)))
    rows = np.stack(
        [
            np.stack([1 + four[..., 0], a - e, b - f, c - g], -1),
            np.stack([a - e, 1 + four[..., 1], c + g, b + f], -1),
            np.stack([b - f, c + g, 1 + four[..., 2], a + e], -1),
            np.stack([c - g, b + f, a + e, 1 + four[..., 3]], -1),
        ],
        -2,
    )  # row i = 4 q_i q
    q = np.take_along_axis(rows, big[..., None, None], -2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    q = np.where(q[..., :1] < 0, -q, q)
    sine = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, q[..., :1])
    return np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0) * q[..., 1:]


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Rodrigues' formula: rotation vectors (..., 3), rad -> (..., 3, 3)."""
    v = np.asarray(vector, dtype=np.float64)
    angle = np.linalg.norm(v, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(v, -1, 0)
    zero = np.zeros_like(x)
    K = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*v.shape[:-1], 3, 3)
    safe = np.maximum(angle, 1e-12)
    return np.eye(3) + np.sinc(angle / np.pi) * K + (1 - np.cos(angle)) / safe**2 * (K @ K)


def control_action(
    target: np.ndarray, openness: np.ndarray, live: np.ndarray, scale: np.ndarray, open_above: float = 0.8
) -> np.ndarray:
    """Released LIBERO conversion, poses (..., 4, 4) -> actions (..., 7):

    [ (p_target - p_live) ; rotvec(R_target R_live^-1) ] / scale, then -1 (open) if openness > 0.8, else +1 (close).
    """
    turn = rotation_vector(target[..., :3, :3] @ np.swapaxes(live[..., :3, :3], -1, -2))
    move = np.concatenate([target[..., :3, 3] - live[..., :3, 3], turn], -1) / scale
    return np.concatenate([move, np.where(openness > open_above, -1.0, 1.0)[..., None]], -1)
