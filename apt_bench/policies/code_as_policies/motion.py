"""Motions of the arm: generators that yield chunks of target poses and receive the next observation.

A pose is that of `Observation.state`: the position of the point between the finger tips and the orientation of the
hand, both in the world frame. The rollout loop turns each pose into an action just before it is executed, so a motion
has the action space, the speed and the step budget of every other policy.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from apt_bench.envs.base import ACTION_SCALE, Observation

Motion = Generator[np.ndarray, Observation, Any]
"""Yields chunks (n, 7) of target poses, n <= `CHUNK`."""

OPEN, CLOSE = -1.0, 1.0
CHUNK, SHORT = 10, 2  # control steps of one chunk, far from the goal and near it
TOLERANCE, ANGLE = 0.005, np.deg2rad(3)  # m, rad: a pose is reached
NEAR = 0.01  # m from the pose above a goal, at which the approach begins
SPEED, TURN_SPEED = 0.0125, 0.12  # m and rad per control step, measured with saturated actions
STILL, STILL_ANGLE, STILL_STEPS = 0.0015, np.deg2rad(0.6), 8  # m, rad per so many control steps: no motion
NEAR_GOAL = 0.02  # m from the goal, at which the motion starts to aim beyond it
INTEGRAL, MOST_BEYOND, MOST_TWIST = 0.5, 0.02, 0.2
"""Share of the remaining distance per chunk; m; rad. Without it, friction stops a weakly driven arm too early."""

MOST_STEPS = 120  # control steps of one motion
FINGERS_STILL = 5e-4  # m per two control steps
FINGER_STEPS = 16
FLIP = Rotation.from_euler("z", np.pi)


class ApiError(Exception):
    """A call that cannot be done: a wrong argument, an unknown object, a pose that was not reached. The code that
    called sees the message."""


class Arm:
    """The end effector during one episode: the last observation, the pose to hold, and the gripper's command."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the last episode."""
        self._observation: Observation | None = None
        self.gripper = OPEN

    def observe(self, observation: Observation) -> None:
        """Take the newest observation."""
        if self._observation is None:
            self.home = Rotation.from_rotvec(observation.state[3:6])
            self._held = observation.state[:6].astype(float)
        self._observation = observation

    @property
    def observation(self) -> Observation:
        """The newest observation."""
        if self._observation is None:
            raise RuntimeError("call observe first")
        return self._observation

    @property
    def position(self) -> np.ndarray:
        """Position (3,) between the finger tips in m."""
        return self.observation.state[:3].astype(float)

    @property
    def rotation(self) -> Rotation:
        """Orientation of the hand."""
        return Rotation.from_rotvec(self.observation.state[3:6].astype(float))

    @property
    def opening(self) -> float:
        """Distance between the fingers in m."""
        return float(np.abs(self.observation.state[6:8]).sum())

    def hold(self, steps: int = CHUNK) -> np.ndarray:
        """A chunk (steps, 7) that keeps the pose and the gripper's command."""
        return np.tile(np.append(self._held, self.gripper), (steps, 1))

    def go_to(self, position: np.ndarray, rotation: Rotation, above: float = 0.0) -> Motion:
        """Move to a pose in a straight line; with `above` (m) first to a point above it, against the approach axis.

        The gripper is symmetric, so that the hand may also be turned by 180 degrees about its approach axis. Of these
        two poses, the one nearer to the orientation at the start of the episode is used: the wrist stays within its
        range.
        """
        flipped = rotation * FLIP
        if (self.home.inv() * flipped).magnitude() < (self.home.inv() * rotation).magnitude():
            rotation = flipped
        if above:
            yield from self._straight(position - above * rotation.as_matrix()[:, 2], rotation, NEAR)
        yield from self._straight(position, rotation, TOLERANCE)

    def move_gripper(self, command: float) -> Motion:
        """Open or close the gripper, until the fingers stop moving."""
        self.gripper = command
        yield from self._execute(self.hold(4))
        end = self.observation.step + FINGER_STEPS
        before = np.inf
        while abs(self.opening - before) > FINGERS_STILL and self.observation.step < end:
            before = self.opening
            yield from self._execute(self.hold(2))

    def _straight(self, position: np.ndarray, rotation: Rotation, tolerance: float) -> Motion:
        self._held = np.append(position, rotation.as_rotvec())
        end = self.observation.step + MOST_STEPS
        marks = [(self.observation.step, self.position, self.rotation)]
        beyond, twist = np.zeros(3), np.zeros(3)  # how far beyond the goal the arm aims, in m and rad
        while True:
            move, turn = position - self.position, (rotation * self.rotation.inv()).as_rotvec()
            distance, angle = float(np.linalg.norm(move)), float(np.linalg.norm(turn))
            if distance < tolerance and angle < ANGLE:
                return
            if self._is_still(marks) or self.observation.step >= end:
                # Pushing on would press the arm against what blocks it.
                self._held = self.observation.state[:6].astype(float)
                raise ApiError(
                    f"goto_pose: the arm stopped {1000 * distance:.0f} mm and {np.rad2deg(angle):.0f} degrees from the "
                    f"pose, at position {np.round(self.position, 3).tolist()}. Something blocks it, or the pose is out "
                    "of reach."
                )
            if distance < NEAR_GOAL:
                beyond = np.clip(beyond + INTEGRAL * move, -MOST_BEYOND, MOST_BEYOND)
                twist = np.clip(twist + INTEGRAL * turn, -MOST_TWIST, MOST_TWIST)
            steps = max((distance - NEAR_GOAL) / SPEED, angle / TURN_SPEED)
            aim = (Rotation.from_rotvec(twist) * rotation).as_rotvec()
            rows = np.tile([*position, *aim, self.gripper], (int(np.clip(steps, SHORT, CHUNK)), 1))
            # Points on the line at which no axis of the action is clipped, so that the path is straight.
            first = ACTION_SCALE[0] / max(float(np.abs(move).max()), ACTION_SCALE[0]) * distance
            for i, row in enumerate(rows):
                share = min(1.0, (first + i * SPEED) / max(distance, 1e-9))
                row[:3] = self.position + move * share + beyond
            yield from self._execute(rows)
            marks.append((self.observation.step, self.position, self.rotation))

    def _is_still(self, marks: list[tuple[int, np.ndarray, Rotation]]) -> bool:
        """Whether the end effector has not moved since the newest mark that is `STILL_STEPS` old."""
        old = [m for m in marks if m[0] <= self.observation.step - STILL_STEPS]
        if not old:
            return False
        _, position, rotation = old[-1]
        moved = float(np.linalg.norm(self.position - position))
        return moved < STILL and float((rotation * self.rotation.inv()).magnitude()) < STILL_ANGLE

    def _execute(self, chunk: np.ndarray) -> Motion:
        self.observe((yield chunk))
