"""robosuite's operational-space controller and gripper, with the same arithmetic and less overhead.

The expressions, their order and the memory layout of their operands are those of robosuite 1.4.0 (controllers/osc.py,
controllers/base_controller.py, robots/manipulator.py). Another order or layout would change the last bits. This module
leaves out the forward passes (`fast_simulation` runs them), lookups by name, and values that nothing reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from apt_bench.envs.mujoco_no_gl import mujoco


class ArmController:
    """Computes torques and gripper commands of one robosuite robot and writes them into `data.ctrl`."""

    def __init__(self, robot: Any, model: Any, data: Any):
        from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

        self._orientation_error = orientation_error
        self._opspace_matrices = opspace_matrices
        self._nullspace_torques = nullspace_torques
        self.robot, self.model, self.data = robot, model, data
        self.qpos = list(robot._ref_joint_pos_indexes)
        self.qvel = list(robot._ref_joint_vel_indexes)
        self._arm = np.array(robot._ref_joint_actuator_indexes)
        self._gripper = np.array(robot._ref_joint_gripper_actuator_indexes)
        self._low, self._high = (np.array(limit) for limit in robot.torque_limits)
        range_ = model.actuator_ctrlrange[self._gripper]
        self._bias = 0.5 * (range_[:, 1] + range_[:, 0])
        self._weight = 0.5 * (range_[:, 1] - range_[:, 0])
        self._fingers = np.array([-1.0, 1.0]) * robot.gripper.speed
        self._jacp, self._jacr = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        self._mass = np.zeros((model.nv, model.nv))

    def start(self) -> None:
        """Use the controller that a reset has created. Its first goal uses the quantities from its creation."""
        self.controller: Any = self.robot.controller
        self.controller.update = self.update
        self.site = self.robot.eef_site_id
        self.force_gain = np.array(self.controller.kp)
        self.damping = np.array(self.controller.kd)

    def set_goal(self, action: np.ndarray) -> None:
        """Set a new goal from the first six numbers of an action, and the gripper's direction from the seventh."""
        self.update()
        self.controller.set_goal(action[:6])
        self._closing = self._fingers * np.sign(action[6:])

    def update(self, force: bool = False) -> None:
        """Do what `Controller.update` does, without its forward pass."""
        c, data, model = self.controller, self.data, self.model
        if not c.new_update and not force:
            return
        c.ee_pos = data.site_xpos[self.site].copy()
        c.ee_ori_mat = data.site_xmat[self.site].reshape(3, 3).copy()
        mujoco.mj_jacSite(model, data, self._jacp, self._jacr, self.site)
        qvel = data.qvel
        c.ee_pos_vel = np.dot(self._jacp, qvel)
        c.ee_ori_vel = np.dot(self._jacr, qvel)
        c.joint_pos = data.qpos[self.qpos]
        c.joint_vel = qvel[self.qvel]
        c.J_pos = self._jacp[:, self.qvel]
        c.J_ori = self._jacr[:, self.qvel]
        c.J_full = np.concatenate((c.J_pos, c.J_ori))
        mujoco.mj_fullM(model, self._mass, data.qM)
        c.mass_matrix = self._mass[self.qvel, :][:, self.qvel]
        c.new_update = False

    def apply(self) -> None:
        """Write the arm's torques and the gripper's command for one substep."""
        self.update()
        c, data = self.controller, self.data
        error = np.concatenate((c.goal_pos - c.ee_pos, self._orientation_error(c.goal_ori, c.ee_ori_mat)))
        velocity = np.concatenate((c.ee_pos_vel, c.ee_ori_vel))
        desired = error * self.force_gain + -velocity * self.damping
        _, lambda_pos, lambda_ori, nullspace = self._opspace_matrices(
            c.mass_matrix, c.J_full, c.J_pos, c.J_ori
        )
        wrench = np.concatenate((np.dot(lambda_pos, desired[:3]), np.dot(lambda_ori, desired[3:])))
        torques = np.dot(c.J_full.T, wrench) + data.qfrc_bias[self.qvel]
        torques += self._nullspace_torques(
            c.mass_matrix, nullspace, c.initial_joint, c.joint_pos, c.joint_vel
        )
        c.new_update = True
        data.ctrl[self._arm] = np.minimum(np.maximum(torques, self._low), self._high)
        gripper = self.robot.gripper
        gripper.current_action = np.minimum(np.maximum(gripper.current_action + self._closing, -1.0), 1.0)
        data.ctrl[self._gripper] = self._bias + self._weight * gripper.current_action
