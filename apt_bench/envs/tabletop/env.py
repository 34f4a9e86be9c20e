"""`TabletopEnv`: the tabletop scenes as an `apt_bench.envs.base.Env`. Each episode compiles its own scene."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.envs.base import (
    ACTION_DIM,
    AGENTVIEW,
    WRIST,
    Observation,
    Outcome,
    axis_angle,
    checked_actions,
    image_requests,
)
from apt_bench.envs.disturbance import Disturbance
from apt_bench.envs.mujoco_helpers import IMAGE_SIZE, camera_geometry, qpos_hash
from apt_bench.envs.mujoco_no_gl import mujoco
from apt_bench.envs.outcome_tracker import Failure, OutcomeTracker
from apt_bench.envs.subtasks import SubtaskTracker
from apt_bench.envs.tabletop.camera import Renderer
from apt_bench.envs.tabletop.controller import GRIPPER_SPEED, OperationalSpaceController
from apt_bench.envs.tabletop.layouts import scene_spec
from apt_bench.envs.tabletop.robots import RobotSpec, robot_spec
from apt_bench.envs.tabletop.scene import TabletopScene
from apt_bench.envs.tabletop.scene_model import SUBSTEPS, compile_scene
from apt_bench.envs.tabletop.scene_spec import SceneSpec
from apt_bench.suites import EpisodeSpec

CAMERAS = (AGENTVIEW, WRIST)


class TabletopEnv:
    """One robot at a table. See `apt_bench.envs.base.Env`.

    `args["robot"]` names the robot: `panda` (default) or `ur5e`. `args["disturbance"]` > 0 pushes it at random times.
    """

    CAMERAS = CAMERAS

    def __init__(self) -> None:
        self._renderer = Renderer()
        self.scene: TabletopScene | None = None
        self._end: tuple[Failure | None, dict[str, Any]] | None = None

    def reset(
        self, spec: EpisodeSpec, cameras: tuple[str, ...] = (), privileged: bool = False
    ) -> Observation:
        """Build the scene of `spec`, let it settle, and observe. Raises UserError for an unknown camera."""
        images, depths = image_requests(cameras, CAMERAS, "The tabletop")
        began = time.perf_counter()
        self._seconds = {"reset": 0.0, "physics": 0.0, "render": 0.0}
        self._spec, self._privileged = spec, privileged
        self._image_names, self._depth_names = images, depths
        robot = str(spec.args.get("robot", "panda"))
        layout: SceneSpec = scene_spec(spec.args, spec.key.task, spec.key.init, spec.key.seed)
        self._robot: RobotSpec = robot_spec(robot)
        self.model, self.data = compile_scene(layout, robot)
        self.scene = TabletopScene(self.model, self.data, layout, self._robot)
        self.start_overlap = self.scene.overlap()
        self._dof = len(self._robot.home)
        self._controller = OperationalSpaceController(
            self.model, self.data, self.scene.robot.grip_site, self._dof, self.data.qpos[: self._dof].copy()
        )
        low, high = self.model.actuator_ctrlrange[self._dof :].T
        self._gripper_centre, self._gripper_half = (low + high) / 2, (high - low) / 2
        self._gripper = -np.array(self._robot.signs)  # open
        self._hand = self.model.body("right_hand").id
        self._steps, self._end = 0, None
        self._disturbance = Disturbance(0.0, [])
        still = np.zeros(ACTION_DIM)
        still[-1] = -1
        for _ in range(spec.settle_steps):
            self._control(still)
        strength = float(spec.args.get("disturbance", 0.0))
        self._disturbance = Disturbance(strength, [spec.key.seed, spec.key.init, *spec.key.task.encode()])
        mujoco.mj_kinematics(self.model, self.data)
        self._start_hash = qpos_hash(self.data)
        self._tracker = OutcomeTracker(self.scene)
        self._tracker.start()
        instructions = list(layout.instructions)
        if len(instructions) == 2:  # a language probe changes the second instruction, too
            instructions[1] = spec.prompts.get("second", instructions[1])
        self._subtasks = SubtaskTracker(instructions, self.scene.goals, spec.max_steps)
        self.scene.goal = self._subtasks.goal
        self._seconds["reset"] = time.perf_counter() - began
        return self._observe(render=True)

    def step_chunk(self, actions: np.ndarray, render: bool = True) -> Observation:
        """Execute an action chunk. The images show the state after the last action. See `apt_bench.envs.base.Env`."""
        began = time.perf_counter()
        scene = self._live()
        ended_early = False
        for action in checked_actions(actions, self.done):
            if self.done:
                ended_early = True
                break
            self._control(action)
            mujoco.mj_kinematics(self.model, self.data)
            self._steps += 1
            self._tracker.update(self._steps)
            self._subtasks.update(self._steps, [all(map(scene.holds, goal)) for goal in scene.goals])
            scene.goal = self._subtasks.goal
        self._seconds["physics"] += time.perf_counter() - began
        return self._observe(render and not ended_early)

    @property
    def done(self) -> bool:
        """Whether the episode is over: it succeeded, no subtask remains, or the step budget is spent."""
        return self._subtasks.over or self._steps >= self._spec.max_steps

    def outcome(self) -> Outcome:
        """Return the state of the episode now. The class of failure and the events follow once it is done.

        `events["distance"]`: horizontal distance (m) of each item from its goal (success in the paper: below 0.11).
        `events["scores"]`: scores of the subtasks of a composite task.
        """
        scene = self._live()
        if self.done and self._end is None:
            failure, events = self._tracker.finish(self._subtasks.success)
            pairs = [a for a in self._subtasks.all_goals if len(a.args) == 2]
            events["distance"] = {str(a): round(scene.offset(*a.args), 4) for a in pairs}
            self._end = failure, events | self._subtasks.events()
        failure, events = self._end or (None, {})
        return Outcome(
            success=self._subtasks.success,
            done=self.done,
            steps=self._steps,
            start_hash=self._start_hash,
            end_hash=qpos_hash(self.data),
            failure=failure,
            events=events,
            seconds=dict(self._seconds),
        )

    def frame(self, camera: str = AGENTVIEW, size: int = IMAGE_SIZE) -> np.ndarray:
        """Render uint8 (size, size, 3) of the current state. Does not change the physics."""
        self._place_lights(camera)
        return self._renderer.render(self.model, self.data, camera, size)

    def segmentation(
        self, camera: str = AGENTVIEW, size: int = IMAGE_SIZE
    ) -> tuple[np.ndarray, Mapping[str, int]]:
        """Render uint8 (size, size), and return the value of each object in it by name. 0 is everything else."""
        scene = self._live()
        self._place_lights(camera)
        geoms = self._renderer.segment(self.model, self.data, camera, size)
        lookup = np.zeros(self.model.ngeom + 1, dtype=np.uint8)
        values = {name: k for k, name in enumerate(scene.objects, start=1)}
        for name, value in values.items():
            lookup[list(scene.objects[name].geoms)] = value
        return lookup[geoms], values

    def close(self) -> None:
        """Free the simulator and its GL context."""
        self._renderer.free()
        self.scene = None

    def _place_lights(self, camera: str) -> None:
        """Update the positions of the lights for an image. Raises UserError for an unknown camera."""
        self._live()
        known = [self.model.camera(i).name for i in range(self.model.ncam)]
        if camera not in known:
            raise UserError(f"The scene has no camera '{camera}'. {did_you_mean(camera, known)}")
        mujoco.mj_camlight(self.model, self.data)

    def _live(self) -> TabletopScene:
        if self.scene is None:
            raise UserError("This environment has no episode yet. Call reset(spec) first.")
        return self.scene

    def _control(self, action: np.ndarray) -> None:
        """Run one control step with an action, float64 (7,) in [-1, 1]."""
        model, data = self.model, self.data
        action = np.append(np.clip(action[:6] + self._disturbance.step(), -1, 1), action[6:])
        turn = np.array(self._robot.signs) * GRIPPER_SPEED * np.sign(action[6])
        for substep in range(SUBSTEPS):
            mujoco.mj_step1(model, data)
            if substep == 0:
                self._controller.set_goal(action)
            self._gripper = np.minimum(np.maximum(self._gripper + turn, -1.0), 1.0)  # np.clip is slower
            data.ctrl[: self._dof] = self._controller.torques()
            data.ctrl[self._dof :] = self._gripper_centre + self._gripper_half * self._gripper
            mujoco.mj_step2(model, data)

    def _observe(self, render: bool) -> Observation:
        began = time.perf_counter()
        images: dict[str, np.ndarray] = {}
        depths: dict[str, np.ndarray] = {}
        cameras = {}
        used = dict.fromkeys([*self._image_names, *self._depth_names])
        if render and used:
            mujoco.mj_camlight(self.model, self.data)
            for name in used:
                if name in self._depth_names:
                    image, depths[name] = self._renderer.render_depth(self.model, self.data, name)
                else:
                    image = self._renderer.render(self.model, self.data, name)
                if name in self._image_names:
                    images[name] = image
                cameras[name] = camera_geometry(self.model, self.data, self.model.camera(name).id)
        self._seconds["render"] += time.perf_counter() - began
        return Observation(
            images=images,
            state=self._state(),
            instruction=self._subtasks.instruction(self._spec.prompt),
            episode=self._spec.key.id,
            noise_key=self._spec.noise_key,
            step=self._steps,
            cameras=cameras,
            scene=self.scene if self._privileged else None,
            depths=depths,
        )

    def _state(self) -> np.ndarray:
        """float32 (8,), as in LIBERO. Another gripper reports its opening in the Panda's units."""
        scene = self._live()
        tip, hand = self.data.site_xpos[scene.robot.grip_site], axis_angle(self.data.xquat[self._hand])
        return np.concatenate([tip, hand, scene.robot.fingers(self.data.qpos)]).astype(np.float32)
