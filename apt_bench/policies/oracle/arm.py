"""Whether the arm can reach a pose of the end effector: inverse kinematics and collisions on a copy of the state.

Frames, units and the tool frame are those of `world.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from apt_bench.envs.base import Scene
from apt_bench.envs.mujoco_no_gl import mujoco

ITERATIONS = 60  # of the inverse kinematics, at most
DAMPING = 0.02  # of its least squares
MAX_EXTENSION = 0.95  # extension above which the arm is close to straight and hard to control
MIN_EXTENSION = 0.55  # extension below which the arm cannot turn the end effector freely
FLIP_ANGLE = 0.06  # rad beyond straight
LIMIT_MARGIN = 0.25  # rad from a joint limit within which a posture costs more


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
        # The controller pulls towards the posture in which the episode starts.
        self._rest = scene.data.qpos[self._qpos].copy()
        self.base = scene.data.xpos[scene.robot.body_root][:2].copy()
        self._measure()
        self._is_robot = np.append(np.isin(model.geom_bodyid, robot_bodies), False)

    def extension(self, position: np.ndarray, rotation: np.ndarray) -> float:
        """Extension of the arm with the end effector at a pose: 1 = straight. Near 1 the elbow may flip."""
        return float(np.linalg.norm(self._shoulder_to_wrist(position, rotation))) / self._length

    def extension_axis(self, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """Unit vector (3,) along which the arm extends."""
        reach = self._shoulder_to_wrist(position, rotation)
        return reach / float(np.linalg.norm(reach))

    def elbow_flipped(self) -> bool:
        """Whether the elbow is bent the wrong way. Moving inwards then only drives it into its joint limit."""
        q, rest = (float(d[self._elbow]) - self._straight for d in (self.scene.data.qpos, self._rest_qpos))
        return q * rest < 0 and abs(q) > FLIP_ANGLE

    def _shoulder_to_wrist(self, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """Vector (3,) from the shoulder to the wrist."""
        away = position[:2] - self.base
        radial = np.array([*away, 0.0]) / max(float(np.linalg.norm(away)), 1e-6)
        approach = rotation[:, 2]
        across = radial - (radial @ approach) * approach
        across /= max(float(np.linalg.norm(across)), 1e-6)
        return position - self._tool_along * approach - self._tool_across * across - self._shoulder

    def into_reach(self, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """The position, moved towards the base in steps of 1 cm until the extension is below `MAX_EXTENSION`."""
        away = position[:2] - self.base
        step = np.array([*away, 0.0]) / max(float(np.linalg.norm(away)), 1e-6) * 0.01
        for _ in range(15):
            if self.extension(position, rotation) < MAX_EXTENSION:
                break
            position = position - step
        return position

    def cost(self, position: np.ndarray, rotation: np.ndarray, ignore: Collection[int] = ()) -> float:
        """Cost (no unit) of the posture that reaches a pose with an open gripper: 0 = easy; 1 or more = out of reach,
        or the robot collides with something other than the geoms `ignore`."""
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
        """Measure what `extension` needs: the distance from the shoulder to the wrist of the straight arm, and from the
        wrist to the finger tips along (`_tool_along`) and across (`_tool_across`) the approach axis."""
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
        """Inverse kinematics. Leaves the posture in the scratch data; returns its errors in position (m) and rotation
        (rad)."""
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
    """Rotation vector (3,) of a rotation matrix: axis times angle (0 to pi)."""
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(matrix).ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def _open(model: Any, scene: Scene) -> list[float]:
    """Joint positions of the fingers with the gripper fully open."""
    ends = []
    for address, (offset, slope) in zip(scene.robot.finger_qpos, scene.robot.finger_m, strict=True):
        joint = int(np.flatnonzero(model.jnt_qposadr == address)[0])
        ends.append(max(map(float, model.jnt_range[joint]), key=lambda q: abs(offset + slope * q)))
    return ends


def ancestors(model: Any, body: int) -> list[int]:
    """Ids of a body and of its ancestors, without the world body."""
    chain = []
    while body:
        chain.append(body)
        body = int(model.body_parentid[body])
    return chain


def subtree(model: Any, root: int) -> list[int]:
    """Ids of a body and of its descendants."""
    found = {root}
    for body in range(root + 1, model.nbody):
        if model.body_parentid[body] in found:
            found.add(body)
    return sorted(found)
