"""`LiberoEnv`: tasks of LIBERO and LIBERO-PRO as an `apt_bench.envs.base.Env`."""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.envs.base import (
    AGENTVIEW,
    WRIST,
    Camera,
    Observation,
    Outcome,
    checked_actions,
    image_requests,
)
from apt_bench.envs.disturbance import Disturbance
from apt_bench.envs.libero.drawn_layouts import draw_layout
from apt_bench.envs.libero.fast_simulation import FastSimulation
from apt_bench.envs.libero.imports import import_libero
from apt_bench.envs.libero.model_cache import ModelCache
from apt_bench.envs.libero.scene import LiberoScene
from apt_bench.envs.libero.tasks import base_goal, bddl_path, goals, load_inits
from apt_bench.envs.mujoco_helpers import IMAGE_SIZE, camera_geometry, qpos_hash
from apt_bench.envs.outcome_tracker import OutcomeTracker
from apt_bench.envs.subtasks import SubtaskTracker
from apt_bench.suites import EpisodeSpec

CAMERAS = {AGENTVIEW: "agentview", WRIST: "robot0_eye_in_hand"}
"""apt-bench's name -> the camera in the scene."""

SETTLE_ACTION = np.array([0, 0, 0, 0, 0, 0, -1.0])  # opens the gripper

_inits = functools.lru_cache(maxsize=16)(load_inits)


def _init(benchmark: str, task: str, spec: EpisodeSpec) -> np.ndarray:
    """The initial state of an episode. Raises UserError where there is none of this number."""
    first = int(spec.args.get("first_init", 0))
    states = _inits(benchmark, task)[first:]
    if not 0 <= spec.key.init < len(states):
        raise UserError(
            f"Task '{spec.key.task}' has no initial state {spec.key.init}. Use 0 to {len(states) - 1}."
        )
    return np.asarray(states[spec.key.init])


class LiberoEnv:
    """One robot in one LIBERO scene.

    Every episode starts from its own random state, `spec.env_seed`. Neither earlier episodes nor a policy's random
    draws change it. The environment is not thread-safe. A process may have several, each with its own compiled models.
    """

    CAMERAS = tuple(CAMERAS)

    def __init__(self) -> None:
        import_libero()  # now, so that the imported packages can be checked before the first episode
        self._models = ModelCache()
        self.simulation: FastSimulation | None = None
        self.spec: EpisodeSpec | None = None
        self._place: tuple[str, str] | None = None  # benchmark and task of `simulation`

    def reset(
        self, spec: EpisodeSpec, cameras: tuple[str, ...] = (), privileged: bool = False
    ) -> Observation:
        """Start an episode: robosuite's reset, the initial state, then `spec.settle_steps` that open the gripper.

        See `apt_bench.envs.base.Env`. Raises UserError for an unknown camera or initial state.
        """
        began = time.perf_counter()
        self._seconds = {"reset": 0.0, "physics": 0.0, "render": 0.0}
        images, depths = image_requests(cameras, CAMERAS, "LIBERO")
        place = (spec.args["benchmark"], spec.args["task"])
        state = None if "layout" in spec.args else _init(*place, spec)
        if self._place != place:
            self._place = self.simulation = None
            self.simulation, self._place = FastSimulation(bddl_path(*place), self._models), place
        self.spec, self.privileged = spec, privileged
        simulation = self._simulation
        simulation.draft = bool(spec.args.get("draft", False))
        second = [spec.prompts["second"]] if "second" in spec.prompts else []
        self.subtasks = SubtaskTracker([spec.prompt, *second], goals(spec.args), spec.max_steps)
        simulation.set_goal(self.subtasks.all_goals)
        self._wanted, self._with_depth = images, depths
        self._camera_ids = {
            n: simulation.sim.model.camera_name2id(CAMERAS[n]) for n in dict.fromkeys([*images, *depths])
        }
        simulation.reset(state, spec.env_seed)
        if state is None:
            kind, wanted = spec.args["layout"], spec.args.get("wanted", {})
            scene = LiberoScene(simulation.wrapper)
            draw_layout(scene, kind, wanted, np.random.default_rng(spec.env_seed))
        self.steps = 0
        self._forget_images()
        for step in range(spec.settle_steps):
            self._step(SETTLE_ACTION, render=step == spec.settle_steps - 1)
        if not spec.settle_steps:
            self._read(render=True)
        self.scene = LiberoScene(simulation.wrapper, base_goal=base_goal(spec.args))
        self.tracker = OutcomeTracker(self.scene)
        self.tracker.start()
        self.scene.goal = self.subtasks.goal
        self._end: tuple[str | None, dict[str, Any]] | None = None
        self._start_hash = qpos_hash(simulation.data)
        self._seconds["reset"] = time.perf_counter() - began - self._seconds["render"]
        self._seconds["physics"] = 0.0
        pushed = [spec.key.seed, spec.key.init, *spec.key.task.encode()]
        self._disturbance = Disturbance(float(spec.args.get("disturbance", 0.0)), pushed)
        return self._observe()

    def step_chunk(self, actions: np.ndarray, render: bool = True) -> Observation:
        """Execute an action chunk. The images come from inside the last control step. See `apt_bench.envs.base.Env`."""
        actions = checked_actions(actions, self._done)[: self._spec.max_steps - self.steps]
        self._forget_images()
        for i, action in enumerate(actions):
            if self._disturbance.strength:
                action = np.append(np.clip(action[:6] + self._disturbance.step(), -1, 1), action[6:])
            holds = self._step(action, render=render and i == len(actions) - 1)
            self.steps += 1
            self.tracker.update(self.steps)
            self.subtasks.update(self.steps, self._goals_hold() if len(self.subtasks.goals) > 1 else [holds])
            self.scene.goal = self.subtasks.goal
            if self._done:
                break
        return self._observe()

    def outcome(self) -> Outcome:
        """Return the state of the episode now. The class of failure and the events follow once it is done."""
        if self._done and self._end is None:
            ended = self.tracker.finish(self.subtasks.success)
            self._end = ended[0], ended[1] | self.subtasks.events()
        failure, events = self._end or (None, {})
        return Outcome(
            success=self.subtasks.success,
            done=self._done,
            steps=self.steps,
            start_hash=self._start_hash,
            end_hash=qpos_hash(self._simulation.data),
            failure=failure,
            events=events,
            seconds=dict(self._seconds),
        )

    def frame(self, camera: str = AGENTVIEW, size: int = IMAGE_SIZE) -> np.ndarray:
        """Render uint8 (size, size, 3) of the current state, turned by 180 degrees like the images in observations.

        `camera` may also be the name of any camera of the scene ("frontview"). This changes neither the physics nor
        the observations. Raises UserError for an unknown camera.
        """
        simulation = self._simulation
        model = simulation.sim.model
        name = CAMERAS.get(camera, camera)
        if name not in model.camera_names:
            raise UserError(f"The scene has no camera '{camera}'. {did_you_mean(camera, model.camera_names)}")
        return simulation.renderer.render(simulation.data, model.camera_name2id(name), size)

    def close(self) -> None:
        """Free the simulator, the compiled models and their GL contexts."""
        self.simulation = self._place = None
        self._models.clear()

    @property
    def _simulation(self) -> FastSimulation:
        if self.simulation is None:
            raise RuntimeError("call reset first")
        return self.simulation

    @property
    def _spec(self) -> EpisodeSpec:
        if self.spec is None:
            raise RuntimeError("call reset first")
        return self.spec

    @property
    def _done(self) -> bool:
        return self.subtasks.over or self.steps >= self._spec.max_steps

    def _step(self, action: np.ndarray, render: bool) -> bool:
        """Run one control step. Return whether every goal holds after it, by LIBERO's own check."""
        began, rendered = time.perf_counter(), self._seconds["render"]
        holds = self._simulation.step(action, functools.partial(self._read, render))
        rendered = self._seconds["render"] - rendered
        self._seconds["physics"] += time.perf_counter() - began - rendered
        return holds

    def _goals_hold(self) -> list[bool]:
        return [all(map(self.scene.holds, goal)) for goal in self.subtasks.goals]

    def _forget_images(self) -> None:
        self._images: dict[str, np.ndarray] = {}
        self._depths: dict[str, np.ndarray] = {}
        self._geometry: dict[str, Camera] = {}

    def _read(self, render: bool) -> None:
        """Read the state and render the images, at the moment at which LIBERO's own loop observes."""
        simulation = self._simulation
        self._state = simulation.state()
        if render and self._camera_ids:
            began = time.perf_counter()
            renderer, data = simulation.renderer, simulation.data
            for name, i in self._camera_ids.items():
                if name in self._with_depth:
                    image, self._depths[name] = renderer.render_depth(data, i)
                else:
                    image = renderer.render(data, i)
                if name in self._wanted:
                    self._images[name] = image
                self._geometry[name] = camera_geometry(simulation.model, data, i, mirrored=True)
            self._seconds["render"] += time.perf_counter() - began

    def _observe(self) -> Observation:
        spec = self._spec
        return Observation(
            images=self._images,
            state=self._state.astype(np.float32),
            instruction=self.subtasks.instruction(spec.prompt),
            episode=spec.key.id,
            noise_key=spec.noise_key,
            step=self.steps,
            cameras=self._geometry,
            scene=self.scene if self.privileged else None,
            depths=self._depths,
        )
