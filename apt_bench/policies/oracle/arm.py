"""Whether the arm can put the hand somewhere: inverse kinematics and collisions on a copy of the state."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.envs.base import Scene

ITERATIONS = 60
DAMPING = 0.02
LIMIT = 0.25  # rad from a joint's end from which on it is a bad posture


class Arm:
    """Kinematics of the robot in one scene. The scene's own data is only read."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        model = scene.model
        self._scratch = mujoco.MjData(model)
        robot_bodies = _subtree(model, scene.robot.body_root)
        fingers = set(scene.robot.finger_qpos)
        self._joints = [
            j for j in range(model.njnt) if model.jnt_bodyid[j] in robot_bodies and model.jnt_qposadr[j] not in fingers
        ]
        self._qpos = model.jnt_qposadr[self._joints]
        self._dofs = model.jnt_dofadr[self._joints]
        self._range = model.jnt_range[self._joints]
        self._rest = scene.data.qpos[self._qpos].copy()  # the controller pulls towards the posture it starts in
        self._is_robot = np.append(np.isin(model.geom_bodyid, robot_bodies), False)

    def cost(self, position: np.ndarray, rotation: np.ndarray, ignore: str = "") -> float:
        """How bad a posture with the open hand there would be: 0 = easy; 1 and more: out of reach, or something other than
        the object `ignore` is in the way."""
        miss = self._solve(position, rotation)
        data, model = self._scratch, self.scene.model
        low, high = self._range.T
        q = data.qpos[self._qpos]
        margin = float(np.minimum(q - low, high - q).min())
        cost = 20 * max(0.0, miss - 0.005) + 2 * max(0.0, LIMIT - margin)
        mujoco.mj_collision(model, data)
        pairs = data.contact.geom
        mine = self._is_robot[pairs]
        crossing = mine[:, 0] != mine[:, 1]
        other = np.where(mine[:, 0], pairs[:, 1], pairs[:, 0])
        spared = list(self.scene.objects[ignore].geoms) if ignore else []
        return cost + float((crossing & ~np.isin(other, spared)).any())

    def _solve(self, position: np.ndarray, rotation: np.ndarray) -> float:
        """Leaves the posture in the scratch data; returns by how far (m) it misses the position."""
        model, data, site = self.scene.model, self._scratch, self.scene.robot.grip_site
        data.qpos[:] = self.scene.data.qpos
        data.qpos[self._qpos] = self._rest
        data.qpos[list(self.scene.robot.finger_qpos)] = _open(model, self.scene)
        jacobian = np.zeros((6, model.nv))
        for _ in range(ITERATIONS):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], site)
            j = jacobian[:, self._dofs]
            here = data.site_xmat[site].reshape(3, 3)
            move = position - data.site_xpos[site]
            turn = Rotation.from_matrix(rotation @ here.T).as_rotvec()
            error = np.concatenate([np.clip(move, -0.1, 0.1), np.clip(turn, -0.5, 0.5)])
            inverse = j.T @ np.linalg.inv(j @ j.T + DAMPING**2 * np.eye(6))
            step = inverse @ error
            q = data.qpos[self._qpos]
            step += (np.eye(len(q)) - inverse @ j) @ (0.1 * (self._rest - q))
            data.qpos[self._qpos] = np.clip(q + step, *self._range.T)
            if np.abs(move).max() < 1e-3 and np.abs(turn).max() < 0.02:
                break
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        return float(np.linalg.norm(position - data.site_xpos[site]))


def _open(model: Any, scene: Scene) -> list[float]:
    """Positions of the fingers at their widest."""
    ends = []
    for address in scene.robot.finger_qpos:
        joint = int(np.flatnonzero(model.jnt_qposadr == address)[0])
        low, high = model.jnt_range[joint]
        ends.append(float(low if abs(low) > abs(high) else high))
    return ends


def _subtree(model: Any, root: int) -> list[int]:
    found = {root}
    for body in range(root + 1, model.nbody):
        if model.body_parentid[body] in found:
            found.add(body)
    return sorted(found)
