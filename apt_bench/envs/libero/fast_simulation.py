"""Run LIBERO's simulation bit for bit, without the work that it does not need.

LIBERO's own loop compiles the model again at every reset, renders both cameras at every control step, and runs three
full forward passes in each of the 25 substeps. This module keeps the compiled model, renders on request, and runs one
full forward pass. The states of the simulation are identical. docs/protocol.md explains why; tests/sim checks it.

The states are identical for MuJoCo up to 3.3.5, because later versions keep the solver's warm start differently. The
suites pin 3.2.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apt_bench.envs.base import Atom, axis_angle
from apt_bench.envs.libero.camera import Renderer
from apt_bench.envs.libero.controller import ArmController
from apt_bench.envs.libero.imports import import_libero, numpy_seed, quiet
from apt_bench.envs.libero.model_cache import ModelCache, cached_compilation
from apt_bench.envs.mujoco_no_gl import mujoco

SUBSTEPS = 25
OBSERVE_AT = 23
"""Index of the substep after which LIBERO's loop observes: its sampling clock, after a reset and one `set_init_state`,
fires there."""

_VELOCITY = mujoco.mjtStage.mjSTAGE_VEL


class FastSimulation:
    """One LIBERO task. Call `reset`, then `step`. `sim` is robosuite's; `model` and `data` are MuJoCo's.

    Simulations that share a cache may share a model and its state. Only the last one that was reset may be used.
    """

    def __init__(self, bddl: Path, cache: ModelCache):
        libero = import_libero()
        with cached_compilation(cache), numpy_seed(0), quiet():
            self.wrapper: Any = libero.env_wrapper.ControlEnv(
                str(bddl), use_camera_obs=False, has_offscreen_renderer=False, hard_reset=False
            )
        assert cache.last is not None
        self.entry = cache.last
        self.env: Any = self.wrapper.env
        self.env._observables = {}  # `LiberoEnv` reads the state itself, at decisions only
        self.sim: Any = self.env.sim
        self.model: Any = self.sim.model._model
        self.data: Any = self.sim.data._data
        # LIBERO adds these again at every load, and draws from the generator for each of them. In a new environment
        # the first episode begins after two loads. Every episode here starts from that state.
        self._initializers = list(self.env.object_property_initializers)
        self._visible = {
            name: dict(obj.object_properties["vis_site_names"])
            for name, obj in [*self.env.objects_dict.items(), *self.env.fixtures_dict.items()]
            if obj.object_properties.get("vis_site_names")
        }
        robot = self.env.robots[0]
        self.controller = ArmController(robot, self.model, self.data)
        self._site = robot.eef_site_id
        self._hand = self.sim.model.body_name2id(robot.robot_model.eef_name)
        self._fingers = list(robot._ref_gripper_joint_pos_indexes)
        self._first_substep = False
        self.draft = False
        """Whether images are rendered without multisampling, see `Renderer`."""

    def set_goal(self, goal: Sequence[Atom]) -> None:
        """Set the goal that `step` checks: that of the BDDL file, or the goals of several tasks of this scene."""
        self.env.parsed_problem["goal_state"] = [[atom.predicate, *atom.args] for atom in goal]

    def reset(self, init_state: np.ndarray | None, seed: int) -> None:
        """Do what `env.seed(seed); env.reset(); env.set_init_state(init_state)` does in a new LIBERO environment.

        None keeps the placement that robosuite draws in the regions of the BDDL file.
        """
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
                mujoco.mj_forward(model, data)  # as MjSim does
                mujoco.mj_forward(model, data)  # as the render context does
                try:
                    env._reset_internal()
                except RandomizationError:  # no space for an object: LIBERO starts again
                    continue
                break
            mujoco.mj_forward(model, data)
            env.visualize(vis_settings=dict.fromkeys(env._visualizations, False))
            if init_state is not None:
                self.wrapper.set_state(init_state)
            mujoco.mj_forward(model, data)
            env._check_success()
            env._post_process()
        self.controller.start()
        self._first_substep = True

    def step(self, action: np.ndarray, observe: Callable[[], None] | None = None) -> bool:
        """Run one control step.

        Args:
            action: float64 (7,) in [-1, 1].
            observe: Called at the moment at which LIBERO's loop takes its observations.

        Returns:
            Whether the goal holds after the step.
        """
        model, data, controller = self.model, self.data, self.controller
        for substep in range(SUBSTEPS):
            # LIBERO's loop runs its own mj_forward, the controller's mj_forward, and mj_step. In the second and the
            # third, position and velocity are unchanged, but the constraint solver starts from its last result.
            mujoco.mj_step1(model, data)
            mujoco.mj_forwardSkip(model, data, _VELOCITY, 1)
            if not self._first_substep:  # a new controller skips its own forward pass once
                mujoco.mj_forwardSkip(model, data, _VELOCITY, 1)
            self._first_substep = False
            if substep == 0:
                controller.set_goal(action)
            controller.apply()
            mujoco.mj_step2(model, data)
            if substep == OBSERVE_AT and observe is not None:
                observe()
        success = bool(self.env._check_success())
        self.env._post_process()
        return success

    @property
    def renderer(self) -> Renderer:
        """The renderer of this task's model, created at its first use and where `draft` has changed."""
        if self.entry.renderer is None or self.entry.renderer.draft != self.draft:
            self.entry.free()
            self.entry.renderer = Renderer(self.model, self.draft)
        renderer: Renderer = self.entry.renderer
        return renderer

    def state(self) -> np.ndarray:
        """The state of an observation, float64 (8,): see `Observation.state`."""
        data = self.data
        return np.concatenate(
            [data.site_xpos[self._site], axis_angle(data.xquat[self._hand]), data.qpos[self._fingers]]
        )
