"""Whether the arm can put the hand somewhere: inverse kinematics and collisions on a copy of the state."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from apt_bench.envs.base import Scene
from apt_bench.envs.mujoco_no_gl import mujoco

ITERATIONS = 60
DAMPING = 0.02
MAX_EXTENSION = 0.95  # share of the arm's length that can be used well
MIN_EXTENSION = 0.55  # of its length: nearer to the base it does not turn the hand freely
FLIP_ANGLE = 0.06  # rad beyond straight
LIMIT_MARGIN = 0.25  # rad from a joint's end from which on it is a bad posture


class Arm:
    """Kinematics of the robot in one scene. The scene's own data is only read."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        model = scene.model
        self._scratch = mujoco.MjData(model)
        robot_bodies = subtree(model, scene.robot.body_root)
        carriers = ancestors(model, int(model.site_bodyid[scene.robot.grip_site]))
        self._joints = [j for j in range(model.njnt) if model.jnt_bodyid[j] in carriers]
        self._qpos = model.jnt_qposadr[self._joints]
        self._dofs = model.jnt_dofadr[self._joints]
        self._range = model.jnt_range[self._joints]
        self._rest_qpos = scene.data.qpos.copy()
        self._rest = scene.data.qpos[
            self._qpos
        ].copy()  # the controller pulls towards the posture it starts in
        self.base = scene.data.xpos[scene.robot.body_root][:2].copy()
        self._measure()
        self._is_robot = np.append(np.isin(model.geom_bodyid, robot_bodies), False)

    def extension(self, position: np.ndarray, rotation: np.ndarray) -> float:
        """How far the arm is stretched with the hand there: 1 = straight. Near that it may flip over its elbow."""
        return float(np.linalg.norm(self._shoulder_to_wrist(position, rotation))) / self._length

    def extension_axis(self, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """(3,) unit vector along which the arm stretches."""
        reach = self._shoulder_to_wrist(position, rotation)
        return reach / float(np.linalg.norm(reach))

    def elbow_flipped(self) -> bool:
        """Whether the elbow is bent the wrong way: then pulling inwards only pushes it against its stop."""
        q, rest = (float(d[self._elbow]) - self._straight for d in (self.scene.data.qpos, self._rest_qpos))
        return q * rest < 0 and abs(q) > FLIP_ANGLE

    def _shoulder_to_wrist(self, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """(3,) from the shoulder to the wrist."""
        away = position[:2] - self.base
        radial = np.array([*away, 0.0]) / max(float(np.linalg.norm(away)), 1e-6)
        approach = rotation[:, 2]
        across = radial - (radial @ approach) * approach
        across /= max(float(np.linalg.norm(across)), 1e-6)
        return position - self._tool_along * approach - self._tool_across * across - self._shoulder

    def into_reach(self, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """The position, drawn towards the base until it can be reached well."""
        away = position[:2] - self.base
        step = np.array([*away, 0.0]) / max(float(np.linalg.norm(away)), 1e-6) * 0.01
        for _ in range(15):
            if self.extension(position, rotation) < MAX_EXTENSION:
                break
            position = position - step
        return position

    def cost(self, position: np.ndarray, rotation: np.ndarray, ignore: Collection[int] = ()) -> float:
        """How bad a posture with the open hand there would be: 0 = easy; 1 and more: out of reach, or something is in
        the way (other than the geoms `ignore`)."""
        miss, turn_error = self._solve(position, rotation)
        data, model = self._scratch, self.scene.model
        low, high = self._range.T
        q = data.qpos[self._qpos]
        margin = float(np.minimum(q - low, high - q).min())
        cost = (
            20 * max(0.0, miss - 0.005)
            + 4 * max(0.0, turn_error - 0.05)
            + 2 * max(0.0, LIMIT_MARGIN - margin)
        )
        cost += 10 * max(0.0, self.extension(position, rotation) - MAX_EXTENSION)
        mujoco.mj_collision(model, data)
        pairs = data.contact.geom
        mine = self._is_robot[pairs]
        crossing = mine[:, 0] != mine[:, 1]
        other = np.where(mine[:, 0], pairs[:, 1], pairs[:, 0])
        return cost + float((crossing & ~np.isin(other, list(ignore))).any())

    def _measure(self) -> None:
        """Lengths that `stretch` needs: from the shoulder to the wrist of the straight arm, and from the wrist to the
        finger tips along (`_behind`) and across (`_beside`) the approach."""
        model, data, site = self.scene.model, self._scratch, self.scene.robot.grip_site
        shoulder, wrist = self._joints[1], self._joints[-2]
        data.qpos[:] = self.scene.data.qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        self._shoulder = data.xanchor[shoulder].copy()
        tool = data.site_xpos[site] - data.xanchor[wrist]
        approach = data.site_xmat[site].reshape(3, 3)[:, 2]
        self._tool_along = float(tool @ approach)
        self._tool_across = float(np.linalg.norm(tool - self._tool_along * approach))
        self._length = 0.0
        for address, (low, high) in zip(self._qpos[2:-2], self._range[2:-2], strict=True):
            for q in np.linspace(low, high, 60):
                data.qpos[address] = q
                mujoco.mj_kinematics(model, data)
                mujoco.mj_comPos(model, data)
                length = float(np.linalg.norm(data.xanchor[wrist] - self._shoulder))
                if length > self._length:
                    self._length, self._elbow, self._straight = length, int(address), float(q)
            data.qpos[:] = self.scene.data.qpos

    def _solve(self, position: np.ndarray, rotation: np.ndarray) -> tuple[float, float]:
        """Leaves the posture in the scratch data; returns by how far (m, rad) it misses the pose."""
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
            turn = rotation_vector(rotation @ here.T)
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
        turn = rotation_vector(rotation @ data.site_xmat[site].reshape(3, 3).T)
        return float(np.linalg.norm(position - data.site_xpos[site])), float(np.linalg.norm(turn))


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """(3,) axis times angle (0 to pi) of a rotation matrix."""
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(matrix).ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def _open(model: Any, scene: Scene) -> list[float]:
    """Positions of the fingers at their widest."""
    ends = []
    for address, (offset, slope) in zip(scene.robot.finger_qpos, scene.robot.finger_m, strict=True):
        joint = int(np.flatnonzero(model.jnt_qposadr == address)[0])
        ends.append(max(map(float, model.jnt_range[joint]), key=lambda q: abs(offset + slope * q)))
    return ends


def ancestors(model: Any, body: int) -> list[int]:
    """Ids of a body and of everything that carries it, without the world."""
    chain = []
    while body:
        chain.append(body)
        body = int(model.body_parentid[body])
    return chain


def subtree(model: Any, root: int) -> list[int]:
    """Ids of a body and everything attached below it."""
    found = {root}
    for body in range(root + 1, model.nbody):
        if model.body_parentid[body] in found:
            found.add(body)
    return sorted(found)
