"""Any cell of any suite as a plain `gymnasium.Env`.

    import gymnasium
    import apt_bench.envs.gym  # registers the ids
    env = gymnasium.make("apt_bench/libero_pro-spatial_task-v1")
    observation, info = env.reset(seed=0, options={"task": 3, "init": 12})

Images are rendered at every step, so this is slower than `apt-bench run`; pass `cameras=()` where none are needed.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle

from apt_bench.core import provenance
from apt_bench.core.config import Natural, build, load_object
from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.jsonable import jsonable
from apt_bench.envs.base import ACTION_DIM, AGENTVIEW, WRIST, Env, Observation
from apt_bench.suites import iter_suites, load_suite

STATE_DIM = 8
IMAGE_SIZE = 256
LONGEST = 300  # characters of an instruction


class SuiteEnv(gymnasium.Env[dict[str, Any], np.ndarray], EzPickle):
    """One cell of a suite.

    Observation: `state` float32 (8,), `instruction`, and per camera uint8 (256, 256, 3), as in
    `apt_bench.envs.base.Observation`. Action: float (7,) in [-1, 1]. Reward: 1 at the step of success, which
    terminates; the spent step budget truncates.

    `reset` takes `options={"task": name or index, "init": index}`; what is not given is drawn from the seed. A task
    and an initial state are exactly the benchmark's episode. `unpinned`: go on with another simulator than the suite's,
    whose scores mean something else; without it that is a UserError.

    Pickling keeps the arguments, not the running episode: reset the copy before its first step.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (gymnasium's convention)

    def __init__(
        self,
        suite: str,
        cell: str,
        cameras: tuple[str, ...] = (AGENTVIEW, WRIST),
        render_mode: str | None = None,
        unpinned: bool = False,
    ):
        EzPickle.__init__(self, suite, cell, cameras, render_mode, unpinned)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"No render mode '{render_mode}'. Use rgb_array, or none.")
        self.suite = load_suite(suite)
        provenance.require(self.suite.name, self.suite.simulator, unpinned)
        self.cell = self.suite.cell(cell)
        self.tasks = [t for t in self.suite.cell_tasks(self.cell) if not t.unavailable]
        if not self.tasks:
            raise UserError(f"Cell '{cell}' of suite '{suite}' has no task that can be run.")
        self.cameras = (cameras,) if isinstance(cameras, str) else tuple(cameras)
        self.render_mode = render_mode
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        image = spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        sentences = {s for t in self.tasks for s in t.prompts.values()}
        letters = frozenset(string.printable).union(*sentences)
        self.observation_space = spaces.Dict(
            {
                "state": spaces.Box(-np.inf, np.inf, (STATE_DIM,), np.float32),
                "instruction": spaces.Text(LONGEST, charset=letters),
                **dict.fromkeys(self.cameras, image),
            }
        )
        make = load_object(self.suite.env)
        for name in self.cameras:
            if name not in (known := getattr(make, "CAMERAS", self.cameras)):
                raise UserError(
                    f"'{self.suite.name}' has no camera '{name}'. {did_you_mean(str(name), known)}"
                )
        self._env: Env = make()

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode. Raises UserError for an unknown option, task or initial state."""
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"task", "init"}:
            raise UserError(f"Unknown option '{sorted(unknown)[0]}'. Known: init, task.")
        drawn = self.tasks[int(self.np_random.integers(len(self.tasks)))].name
        wanted = str(options.get("task", drawn))
        if options.get("init") is None:
            init = int(self.np_random.integers(min(t.inits for t in self.tasks)))
        else:
            init = build(Natural, jsonable(options["init"]), "init")
        found = self.suite.select(cells=[self.cell.name], tasks=[wanted], episodes=1)
        names = [spec.key.task for spec in found]
        if len(names) != 1 and wanted not in names:
            raise UserError(f"Task '{wanted}' is one of several: {', '.join(names)}.")
        task = wanted if wanted in names else names[0]
        inits = next(t.inits for t in self.tasks if t.name == task)
        if init >= inits:
            raise UserError(f"init is {init}; task '{task}' has {inits} initial states, numbered from 0.")
        # This episode alone: the sentence of each initial state may need its scene, which takes time to draw.
        spec = self.suite.episode(dataclasses.replace(found[0].key, task=task, init=init))
        observation = self._env.reset(spec, self.cameras)
        return self._dict(observation), {"episode": spec.key.id, "flags": spec.flags}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step."""
        observation = self._env.step_chunk(np.asarray(action, dtype=np.float64)[None])
        outcome = self._env.outcome()
        info: dict[str, Any] = {"success": outcome.success, "steps": outcome.steps}
        if outcome.done:
            info |= {"failure": outcome.failure, "events": dict(outcome.events)}
        truncated = outcome.done and not outcome.success
        return self._dict(observation), float(outcome.success), outcome.success, truncated, info

    def render(self) -> np.ndarray | None:
        """The agent's view of the current state, uint8 (256, 256, 3), in render mode `rgb_array`."""
        return self._env.frame() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()

    def _dict(self, observation: Observation) -> dict[str, Any]:
        return {
            "state": observation.state,
            "instruction": observation.instruction,
            **observation.images,
        }


def env_id(suite: str, cell: str, version: int) -> str:
    """The registered name of a cell."""
    return f"apt_bench/{suite}-{cell}-v{version}"


def register_all() -> list[str]:
    """Register every cell of every suite that is known by name; returns the ids."""
    ids = []
    for suite in iter_suites():
        for cell in suite.cells:
            name = env_id(suite.name, cell.name, suite.version)
            if name not in gymnasium.registry:
                gymnasium.register(
                    name,
                    entry_point="apt_bench.envs.gym:SuiteEnv",
                    kwargs={"suite": suite.name, "cell": cell.name},
                )
            ids.append(name)
    return ids


IDS = register_all()
