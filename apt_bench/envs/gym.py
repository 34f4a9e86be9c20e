"""Each cell of each suite as a `gymnasium.Env`.

    import gymnasium
    import apt_bench.envs.gym  # registers the ids
    env = gymnasium.make("apt_bench/libero_pro-spatial_task-v1")
    observation, info = env.reset(seed=0, options={"task": 3, "init": 12})

Images are rendered at every step, which is slower than `apt-bench run`. Pass `cameras=()` where no images are needed.
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
MAX_INSTRUCTION = 300  # characters


class SuiteEnv(gymnasium.Env[dict[str, Any], np.ndarray], EzPickle):
    """One cell of a suite.

    The observation is a dict: `state` float32 (8,), `instruction` (text), and per camera an image uint8 (256, 256, 3).
    `apt_bench.envs.base.Observation` describes them. An action is float (7,) in [-1, 1], see
    `apt_bench.envs.base.ACTION_DIM`. The reward is 1 at the step of success, which terminates the episode, and 0
    otherwise. The end of the step budget truncates the episode.

    A pickled copy has the arguments, not the running episode. Reset the copy before its first step.

    Attributes:
        suite: The suite.
        cell: The cell.
        tasks: The tasks of the cell that can be run.
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
        """Create the environment.

        Args:
            suite: Name of a suite, or the path of its YAML file.
            cell: Name of a cell.
            cameras: Names of the cameras to render.
            render_mode: "rgb_array" or None.
            unpinned: Accept another simulator than the suite's. Its scores cannot be compared with others.

        Raises:
            UserError: The suite, cell, camera or render mode is unknown, the cell has no task that can be run, or the
                installed simulator is not the suite's.
        """
        EzPickle.__init__(self, suite, cell, cameras, render_mode, unpinned)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"No render mode '{render_mode}'. Use rgb_array or None.")
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
                "instruction": spaces.Text(MAX_INSTRUCTION, charset=letters),
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
        """Start an episode. A task and an initial state give exactly the benchmark's episode.

        Args:
            seed: Seeds the random draws of this and later resets.
            options: `task` (a name, a part of a name, or an index in the cell) and `init` (index of the initial state,
                from 0). An option that is missing is drawn at random.

        Returns:
            The observation, and `info` with `episode` (`EpisodeKey.id`) and `flags` (known defects).

        Raises:
            UserError: An option, task or initial state is unknown, or a part of a name fits several tasks.
        """
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
            raise UserError(f"'{wanted}' fits several tasks: {', '.join(names)}. Give the whole name.")
        task = wanted if wanted in names else names[0]
        inits = next(t.inits for t in self.tasks if t.name == task)
        if init >= inits:
            raise UserError(f"init is {init}; task '{task}' has {inits} initial states, numbered from 0.")
        # Only this episode: the sentence of an initial state may need its scene, which takes time to draw.
        spec = self.suite.episode(dataclasses.replace(found[0].key, task=task, init=init))
        observation = self._env.reset(spec, self.cameras)
        return self._dict(observation), {"episode": spec.key.id, "flags": spec.flags}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Run one control step.

        Args:
            action: float (7,) in [-1, 1].

        Returns:
            Observation, reward, terminated, truncated, and `info` with `success` and `steps` (control steps taken). At
            the end of the episode `info` also has `failure` (the class of failure, None on success) and `events`.
        """
        observation = self._env.step_chunk(np.asarray(action, dtype=np.float64)[None])
        outcome = self._env.outcome()
        info: dict[str, Any] = {"success": outcome.success, "steps": outcome.steps}
        if outcome.done:
            info |= {"failure": outcome.failure, "events": dict(outcome.events)}
        truncated = outcome.done and not outcome.success
        return self._dict(observation), float(outcome.success), outcome.success, truncated, info

    def render(self) -> np.ndarray | None:
        """Render `agentview`, uint8 (256, 256, 3), in render mode `rgb_array`; otherwise return None."""
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
    """Return the Gymnasium id of a cell."""
    return f"apt_bench/{suite}-{cell}-v{version}"


def register_all() -> list[str]:
    """Register every cell of every suite that has a name. Returns the ids."""
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
