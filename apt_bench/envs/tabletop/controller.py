"""Operational-space control of the arm, with robosuite's `OSC_POSE` conventions and gains.

An action sets the goal of the grip site relative to its current pose: up to 5 cm per axis (world axes) and up to
0.5 rad of rotation. A zero rotation keeps the last goal orientation. The torques follow Khatib (1987), with position
and orientation uncoupled, kp 150, critical damping, and a null-space term (kp 10) towards the home joints.
"""

from __future__ import annotations

from math import cos, sin, sqrt
from typing import Any

import numpy as np
from scipy.linalg.lapack import dposv

from apt_bench.envs.mujoco_no_gl import mujoco

KP, NULL_KP = 150.0, 10.0
KD, NULL_KD = 2 * sqrt(KP), 2 * sqrt(NULL_KP)
POSITION_UNIT, ROTATION_UNIT = 0.05, 0.5
GRIPPER_SPEED = 0.01
"""Fraction of half the gripper's range per substep. There are 25 substeps per control step, so closing takes 8 control
steps."""


class OperationalSpaceController:
    """Computes the torques of one arm. `dof`: its number of joints, which come first in qpos, qvel and ctrl."""

    def __init__(self, model: Any, data: Any, site: int, dof: int, home: np.ndarray) -> None:
        self.model, self.data, self.site, self.dof, self.home = model, data, site, dof, home
        self._jacobian = np.zeros((6, model.nv))
        self._mass = np.zeros((model.nv, model.nv))
        self._low, self._high = model.actuator_ctrlrange[:dof].T
        self.goal_position = data.site_xpos[site].copy()
        self.goal_rotation = data.site_xmat[site].reshape(3, 3).copy()

    def set_goal(self, action: np.ndarray) -> None:
        """Set the next goal from float (6,) in [-1, 1], relative to the current pose of the grip site."""
        self.goal_position = self.data.site_xpos[self.site] + POSITION_UNIT * action[:3]
        if np.any(action[3:6]):
            rotation = self.data.site_xmat[self.site].reshape(3, 3)
            self.goal_rotation = rotation_matrix(ROTATION_UNIT * action[3:6]) @ rotation

    def torques(self) -> np.ndarray:
        """Return the torques, float (dof,) in N m, clipped to the motors' range. `mj_step1` must have run."""
        model, data, n = self.model, self.data, self.dof
        mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self.site)
        mujoco.mj_fullM(model, self._mass, data.qM)
        jacobian, mass = self._jacobian[:, :n], self._mass[:n, :n]
        velocity = self._jacobian @ data.qvel
        current = data.site_xmat[self.site].reshape(3, 3)
        error = np.empty(6)
        error[:3] = self.goal_position - data.site_xpos[self.site]
        error[3:] = _rotation_error(self.goal_rotation, current)
        wanted = KP * error - KD * velocity
        # mobility = J M^-1 J^T, the inverse of the operational-space inertia
        mobility = jacobian @ _solve(mass, jacobian.T)
        wrench = np.concatenate([_solve(mobility[:3, :3], wanted[:3]), _solve(mobility[3:, 3:], wanted[3:])])
        # Null space: (I - Jbar J)^T M a with Jbar = M^-1 J^T mobility^-1, which is M a - J^T mobility^-1 J a.
        posture = NULL_KP * (self.home - data.qpos[:n]) - NULL_KD * data.qvel[:n]
        wrench -= _solve(mobility, jacobian @ posture)
        torque = jacobian.T @ wrench + mass @ posture + data.qfrc_bias[:n]
        return np.minimum(np.maximum(torque, self._low), self._high)


def _solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Solve a x = b for a symmetric positive (semi)definite a, with LAPACK directly to avoid numpy's slow checks."""
    _, x, info = dposv(a, b)
    return np.asarray(x if info == 0 else np.linalg.pinv(a) @ b)


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Convert a rotation vector (3,) in rad to a rotation matrix (3, 3), with Rodrigues' formula."""
    x, y, z = vector
    angle = sqrt(x * x + y * y + z * z)
    if angle < 1e-12:
        return np.eye(3)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) / angle
    return np.asarray(np.eye(3) + sin(angle) * k + (1 - cos(angle)) * (k @ k))


def _rotation_error(goal: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Half the sum of the cross products of the axes: the vector part of goal @ now.T for small angles."""
    d = goal @ now.T
    return np.array([d[2, 1] - d[1, 2], d[0, 2] - d[2, 0], d[1, 0] - d[0, 1]]) / 2
