"""LIBERO's simulation, bit for bit, without what it does not need.

The plain loop compiles the model again at every reset, renders both cameras at every control step, and runs three full
forward passes in each of the 25 substeps. This engine keeps the compiled model, renders when asked, and runs one; the
states it passes through are identical. docs/protocol.md gives the argument, tests/sim the proof.

The identities hold for MuJoCo up to 3.3.5 (later versions keep the solver's warm start differently); the suites pin
3.2.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apt_bench.envs.base import Atom, axis_angle
from apt_bench.envs.libero.camera import Renderer
from apt_bench.envs.libero.control import ArmControl
from apt_bench.envs.libero.runtime import CACHE, cached_compilation, import_libero, numpy_seed, quiet
from apt_bench.envs.mj import mujoco

SUBSTEPS = 25
LOOK_AT = 23
"""Index of the substep after which observations are taken: the plain loop's sampling clock, after a reset and one
`set_init_state`, fires there."""

_VELOCITY = mujoco.mjtStage.mjSTAGE_VEL


class Engine:
    """One LIBERO task: `reset`, then `step` with a 7-D action. `sim` is robosuite's, `model` and `data` MuJoCo's."""

    def __init__(self, bddl: Path):
        libero = import_libero()
        with cached_compilation() as cache, numpy_seed(0), quiet():
            self.wrapper: Any = libero.env_wrapper.ControlEnv(
                str(bddl), use_camera_obs=False, has_offscreen_renderer=False, hard_reset=False
            )
        assert cache.last is not None
        self.entry = cache.last
        self.env: Any = self.wrapper.env
        self.env._observables = {}  # sampled by hand, when a policy looks
        self.sim: Any = self.env.sim
        self.model: Any = self.sim.model._model
        self.data: Any = self.sim.data._data
        # LIBERO adds these again at every load, and draws from the generator for each: a fresh environment has loaded
        # twice when its first episode begins. That is the state every episode starts from here.
        self._initializers = list(self.env.object_property_initializers)
        self._visible = {
            name: dict(obj.object_properties["vis_site_names"])
            for name, obj in [*self.env.objects_dict.items(), *self.env.fixtures_dict.items()]
            if obj.object_properties.get("vis_site_names")
        }
        robot = self.env.robots[0]
        self.control = ArmControl(robot, self.model, self.data)
        self._site = robot.eef_site_id
        self._hand = self.sim.model.body_name2id(robot.robot_model.eef_name)
        self._fingers = list(robot._ref_gripper_joint_pos_indexes)
        self._fresh = False

    def ask(self, goal: Sequence[Atom]) -> None:
        """What `step` checks from now on: the file's goal, or goals of several tasks of this scene."""
        self.env.parsed_problem["goal_state"] = [[atom.predicate, *atom.args] for atom in goal]

    def reset(self, init_state: np.ndarray, seed: int) -> None:
        """What `env.seed(seed); env.reset(); env.set_init_state(init_state)` does in a fresh LIBERO environment."""
        from robosuite.utils.errors import RandomizationError

        env, model, data = self.env, self.model, self.data
        with numpy_seed(seed), quiet():
            env.object_property_initializers = list(self._initializers)
            while True:
                env.object_property_initializers += self._initializers
                self.entry.restore()
                for name, sites in self._visible.items():
                    env.get_object(name).object_properties["vis_site_names"].update(sites)
                gripper = env.robots[0].gripper
                gripper.current_action = np.zeros_like(gripper.current_action)
                mujoco.mj_resetData(model, data)
                mujoco.mj_forward(model, data)  # MjSim's
                mujoco.mj_forward(model, data)  # the render context's
                try:
                    env._reset_internal()
                except RandomizationError:  # no room for an object: LIBERO starts over
                    continue
                break
            mujoco.mj_forward(model, data)
            env.visualize(vis_settings=dict.fromkeys(env._visualizations, False))
            self.wrapper.set_state(init_state)
            mujoco.mj_forward(model, data)
            env._check_success()
            env._post_process()
        self.control.start()
        self.entry.user = self
        self._fresh = True

    def step(self, action: np.ndarray, look: Callable[[], None] | None = None) -> bool:
        """One control step: float64 (7,) in [-1, 1]. `look` is called where the plain loop takes its observations.
        Returns whether the goal holds after the step."""
        if self.entry.user is not self:
            raise RuntimeError(
                "another LiberoEnv of this process has taken over this scene: use one per process"
            )
        model, data, control = self.model, self.data, self.control
        for substep in range(SUBSTEPS):
            # The plain loop: mj_forward (its own), mj_forward (the controller's), mj_step. The second and third find
            # position and velocity unchanged; what they add is that the constraint solver starts from its last answer.
            mujoco.mj_step1(model, data)
            mujoco.mj_forwardSkip(model, data, _VELOCITY, 1)
            if not self._fresh:  # a new controller does not run its own at first
                mujoco.mj_forwardSkip(model, data, _VELOCITY, 1)
            self._fresh = False
            if substep == 0:
                control.set_goal(action)
            control.apply()
            mujoco.mj_step2(model, data)
            if substep == LOOK_AT and look is not None:
                look()
        success = bool(self.env._check_success())
        self.env._post_process()
        return success

    @property
    def renderer(self) -> Renderer:
        """The renderer of this task's model, made when first asked for."""
        if self.entry.context is None:
            self.entry.context = Renderer(self.model)
        renderer: Renderer = self.entry.context
        return renderer

    def state(self) -> np.ndarray:
        """float64 (8,): grip site position, axis-angle of the hand's orientation, finger positions."""
        data = self.data
        return np.concatenate(
            [data.site_xpos[self._site], axis_angle(data.xquat[self._hand]), data.qpos[self._fingers]]
        )

    @staticmethod
    def free_all() -> None:
        """Forget every cached model."""
        CACHE.clear()
