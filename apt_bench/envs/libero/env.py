"""`LiberoEnv`: LIBERO and LIBERO-PRO tasks behind the `Env` contract."""

from __future__ import annotations

import functools
import hashlib
import time
from typing import Any

import numpy as np

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.envs.base import ACTION_DIM, AGENTVIEW, WRIST, Camera, Observation, Outcome
from apt_bench.envs.libero.camera import SIZE, camera_geometry
from apt_bench.envs.libero.catalog import base_goal, bddl_path, goals, load_inits
from apt_bench.envs.libero.engine import Engine
from apt_bench.envs.libero.runtime import import_libero
from apt_bench.envs.libero.scene import LiberoScene
from apt_bench.envs.outcome import OutcomeTracker
from apt_bench.envs.subtasks import Stages
from apt_bench.suites import EpisodeSpec

CAMERAS = {AGENTVIEW: "agentview", WRIST: "robot0_eye_in_hand"}
"""apt-bench's name -> the camera in the scene."""

SETTLE_ACTION = np.array([0, 0, 0, 0, 0, 0, -1.0])  # opens the gripper

_inits = functools.lru_cache(maxsize=16)(load_inits)


class LiberoEnv:
    """One robot in one scene. Every episode starts from its own random state, `spec.env_seed`: neither the episodes
    before nor a policy's draws change it. Not thread safe; one per process, because the compiled models are shared."""

    CAMERAS = tuple(CAMERAS)

    def __init__(self) -> None:
        import_libero()  # now, so that what is imported can be looked at before anything is simulated
        self.engine: Engine | None = None
        self.spec: EpisodeSpec | None = None
        self._place: tuple[str, str] | None = None  # benchmark and task that the engine holds

    def reset(
        self, spec: EpisodeSpec, cameras: tuple[str, ...] = (), privileged: bool = False
    ) -> Observation:
        """Start the episode: robosuite's reset, the initial state, then `spec.settle_steps` with an opening gripper.
        Raises UserError for an unknown camera or initial state."""
        began = time.perf_counter()
        self._seconds = {"reset": 0.0, "physics": 0.0, "render": 0.0}
        for name in cameras:
            if name not in CAMERAS:
                raise UserError(f"LIBERO has no camera '{name}'. {did_you_mean(name, CAMERAS)}")
        place = (spec.args["benchmark"], spec.args["task"])
        states = _inits(*place)
        if not 0 <= spec.key.init < len(states):
            raise UserError(
                f"Task '{spec.key.task}' has the initial states 0..{len(states) - 1}, not {spec.key.init}."
            )
        if self._place != place:
            self._place = self.engine = None
            self.engine, self._place = Engine(bddl_path(*place)), place
        self.spec, self.cameras, self.privileged = spec, cameras, privileged
        engine = self._engine
        second = [spec.prompts["second"]] if "second" in spec.prompts else []
        self.stages = Stages([spec.prompt, *second], goals(spec.args), spec.max_steps)
        engine.ask(self.stages.all_goals)
        self._camera_ids = {n: engine.sim.model.camera_name2id(CAMERAS[n]) for n in cameras}
        engine.reset(states[spec.key.init], spec.env_seed)
        self.steps = 0
        self._images: dict[str, np.ndarray] = {}
        for step in range(spec.settle_steps):
            self._step(SETTLE_ACTION, look=step == spec.settle_steps - 1)
        if not spec.settle_steps:
            self._look(images=True)
        self.scene = LiberoScene(engine.wrapper, base_goal=base_goal(spec.args))
        self.tracker = OutcomeTracker(self.scene)
        self.tracker.start()
        self.scene.goal = self.stages.goal
        self._end: tuple[str | None, dict[str, Any]] | None = None
        self._start_hash = self._qpos_hash()
        self._seconds["reset"] = time.perf_counter() - began - self._seconds["render"]
        self._seconds["physics"] = 0.0
        return self._observe()

    def step_chunk(self, actions: np.ndarray, render: bool = True) -> Observation:
        """Execute `actions` (n, 7), clipped to [-1, 1], until the episode is done; the images come from inside the last
        of them (none where the episode ends before). Raises ValueError for another shape, NaN, a finished episode."""
        actions = np.asarray(actions, dtype=np.float64)
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or not len(actions):
            raise ValueError(f"actions must have the shape (n, {ACTION_DIM}), not {actions.shape}")
        if not np.isfinite(actions).all():
            raise ValueError("actions must be finite")
        if self._done:
            raise ValueError("the episode is over: call reset")
        actions = np.clip(actions, -1.0, 1.0)[: self._spec.max_steps - self.steps]
        self._images = {}
        for i, action in enumerate(actions):
            holds = self._step(action, look=render and i == len(actions) - 1)
            self.steps += 1
            self.tracker.update(self.steps)
            self.stages.update(self.steps, self._parts_hold() if len(self.stages.parts) > 1 else [holds])
            self.scene.goal = self.stages.goal
            if self._done:
                break
        return self._observe()

    def outcome(self) -> Outcome:
        """How the episode stands now; what failed and the events are told once it is done."""
        if self._done and self._end is None:
            ended = self.tracker.finish(self.stages.success)
            self._end = ended[0], ended[1] | self.stages.events()
        failure, events = self._end or (None, {})
        return Outcome(
            success=self.stages.success,
            done=self._done,
            steps=self.steps,
            start_hash=self._start_hash,
            end_hash=self._qpos_hash(),
            failure=failure,
            events=events,
            seconds=dict(self._seconds),
        )

    def frame(self, camera: str = AGENTVIEW, size: int = SIZE) -> np.ndarray:
        """uint8 (size, size, 3) of the state as it is now, turned like the policy's images. `camera` may also be the
        name of any camera of the scene ("frontview"). Touches neither the physics nor the observations."""
        model = self._engine.sim.model
        name = CAMERAS.get(camera, camera)
        if name not in model.camera_names:
            raise UserError(f"The scene has no camera '{camera}'. {did_you_mean(camera, model.camera_names)}")
        return self._engine.renderer.render(self._engine.data, model.camera_name2id(name), size)

    def close(self) -> None:
        """Free the simulator and every cached model and GL context of this process."""
        self.engine = self._place = None
        Engine.free_all()

    @property
    def _engine(self) -> Engine:
        if self.engine is None:
            raise RuntimeError("call reset first")
        return self.engine

    @property
    def _spec(self) -> EpisodeSpec:
        if self.spec is None:
            raise RuntimeError("call reset first")
        return self.spec

    @property
    def _done(self) -> bool:
        return self.stages.over or self.steps >= self._spec.max_steps

    def _step(self, action: np.ndarray, look: bool) -> bool:
        """Whether every goal holds now, by LIBERO's own check. What settling brings about does not count."""
        began, rendered = time.perf_counter(), self._seconds["render"]
        holds = self._engine.step(action, functools.partial(self._look, look))
        rendered = self._seconds["render"] - rendered
        self._seconds["physics"] += time.perf_counter() - began - rendered
        return holds

    def _parts_hold(self) -> list[bool]:
        return [all(map(self.scene.holds, part)) for part in self.stages.parts]

    def _look(self, images: bool) -> None:
        """Take the observation; called by the engine at the plain loop's moment."""
        engine = self._engine
        self._state = engine.state()
        if images and self.cameras:
            began = time.perf_counter()
            renderer, data = engine.renderer, engine.data
            self._images = {name: renderer.render(data, i) for name, i in self._camera_ids.items()}
            self._geometry = {n: camera_geometry(engine.model, data, i) for n, i in self._camera_ids.items()}
            self._seconds["render"] += time.perf_counter() - began

    def _observe(self) -> Observation:
        spec = self._spec
        geometry: dict[str, Camera] = self._geometry if self._images else {}
        return Observation(
            images=self._images,
            state=self._state.astype(np.float32),
            instruction=self.stages.instruction(spec.prompt),
            episode=spec.key.id,
            noise_key=spec.noise_key,
            step=self.steps,
            cameras=geometry,
            scene=self.scene if self.privileged else None,
        )

    def _qpos_hash(self) -> str:
        return hashlib.sha256(self._engine.data.qpos.tobytes()).hexdigest()[:16]
