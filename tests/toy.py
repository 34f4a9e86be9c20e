"""A real but tiny MuJoCo world for the runner's tests: a puck on a table is pushed to a goal. No GL is needed: numpy
draws its one camera's images. Files in $TOY_FAULTS request faults (see `order`)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import mujoco
import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.envs.base import ACTION_DIM, AGENTVIEW, Observation, Outcome
from apt_bench.policies.base import PolicySpec, Resources
from apt_bench.suites import Cell, EpisodeSpec, Suite, Task

WORLD = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <geom type="plane" size="1 1 .1"/>
    <body name="puck" pos="0 0 .05">
      <joint name="x" type="slide" axis="1 0 0" damping="2"/>
      <joint name="y" type="slide" axis="0 1 0" damping="2"/>
      <geom type="cylinder" size=".05 .02" mass=".2" contype="0" conaffinity="0"/>
      <body pos="0 0 .1">
        <joint name="pole" type="hinge" axis="0 1 0" damping=".02"/>
        <geom type="capsule" fromto="0 0 0 0 0 .2" size=".01" mass=".05" contype="0" conaffinity="0"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="x" gear="3"/><motor joint="y" gear="3"/></actuator>
</mujoco>
"""
SUBSTEPS = 5
REACH = 0.12
INITS = 50


def cell_tasks(cell: Cell) -> list[Task]:
    """Two tasks in two scenes (groups)."""
    return [
        Task(
            name=f"push_the_puck_{side}",
            prompts={"file": f"push the puck {side}", "bddl": f"slide the puck {side}"},
            args={"side": side, **cell.args},
            group=side,
            inits=INITS,
            unavailable=cell.args.get("unavailable"),
        )
        for side in ("left", "right")
    ]


def order(faults: Path, what: str, episode: str) -> None:
    """Request one fault for one episode; it happens once.

    what: hang, crash (an exception), exit (`sys.exit`), die (the process); policy-hang, policy-gone (a hosted policy).
    """
    faults.mkdir(exist_ok=True)
    (faults / _file(what, episode)).touch()


def due(what: str, episode: str) -> bool:
    """Whether this fault was requested for now. `slow`, for no episode, holds until the file is removed."""
    path = Path(os.environ.get("TOY_FAULTS", "/nowhere")) / _file(what, episode)
    try:
        path.stat() if what == "slow" else path.unlink()
    except FileNotFoundError:
        return False
    return True


def _file(what: str, episode: str) -> str:
    return f"{what}-{episode.replace('/', '-')}"


class ToyEnv:
    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(WORLD)
        self.data = mujoco.MjData(self.model)

    def reset(
        self, spec: EpisodeSpec, cameras: tuple[str, ...] = (), privileged: bool = False
    ) -> Observation:
        if "no_gl" in spec.args:
            raise UserError("No usable GL backend: tried egl, osmesa. Install libosmesa6.")
        self._start = time.perf_counter()
        self.spec, self.cameras = spec, cameras
        rng = np.random.default_rng(spec.env_seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = rng.uniform(-0.3, 0.3, 3)
        self.goal = np.array([-0.6 if spec.args["side"] == "left" else 0.6, rng.uniform(-0.5, 0.5)])
        for _ in range(spec.settle_steps * SUBSTEPS):
            mujoco.mj_step(self.model, self.data)
        self.steps, self.success, self.start = 0, False, self._hash()
        self.seconds = {"reset": time.perf_counter() - self._start, "physics": 0.0, "render": 0.0}
        return self._observe()

    def step_chunk(self, actions: np.ndarray, render: bool = True) -> Observation:
        self._faults()
        start = time.perf_counter()
        for action in actions:
            self.data.ctrl[:] = np.clip(action[:2], -1, 1)
            for _ in range(SUBSTEPS):
                mujoco.mj_step(self.model, self.data)
            self.steps += 1
            self.success = bool(np.linalg.norm(self.data.qpos[:2] - self.goal) < REACH)
            if self.outcome().done:
                break
        self.seconds["physics"] += time.perf_counter() - start
        return self._observe()

    def outcome(self) -> Outcome:
        lost = bool(np.abs(self.data.qpos[:2]).max() > 1)
        return Outcome(
            success=self.success,
            done=self.success or lost or self.steps >= self.spec.max_steps,
            steps=self.steps,
            start_hash=self.start,
            end_hash=self._hash(),
            failure=None if self.success else "off_the_table" if lost else "too_slow",
            events={"goal": self.goal.tolist()},
            seconds=self.seconds,
        )

    def frame(self, camera: str = AGENTVIEW, size: int = 64) -> np.ndarray:
        image = np.zeros((64, 64, 3), np.uint8)
        for xy, colour in ((self.goal, 1), (self.data.qpos[:2], 0)):
            column, row = np.clip((np.array([1, -1]) * xy + 1) * 32, 2, 61).astype(int)
            image[row - 2 : row + 3, column - 2 : column + 3, colour] = 255
        return image

    def close(self) -> None:
        pass

    def _observe(self) -> Observation:
        state = np.zeros(8, np.float32)
        state[:2], state[2:4], state[4:6] = self.data.qpos[:2], self.goal, self.data.qvel[:2]
        images = {camera: self.frame(camera) for camera in self.cameras}
        return Observation(images, state, self.spec.prompt, self.spec.key.id, self.steps)

    def _hash(self) -> str:
        return hashlib.sha256(self.data.qpos.tobytes()).hexdigest()[:16]

    def _faults(self) -> None:
        if due("slow", ""):
            time.sleep(0.02)
        if due("hang", self.spec.key.id):
            time.sleep(1000)
        if due("die", self.spec.key.id):
            os._exit(1)
        if due("exit", self.spec.key.id):
            raise SystemExit(0)
        if due("crash", self.spec.key.id) or "broken" in self.spec.args:
            raise RuntimeError("the toy broke")


class UnpicklableEnv(ToyEnv):
    """Its events cannot be sent to another process."""

    def outcome(self) -> Outcome:
        return dataclasses.replace(super().outcome(), events={"lock": threading.Lock()})


class PushPolicy:
    """Pushes towards the goal with a strength that differs by episode, so that some are too slow."""

    spec = PolicySpec(
        "push", cameras=(AGENTVIEW,), horizon=4, execute=3, resources=Resources(placement="worker")
    )

    def __init__(self, noise: float = 0.5) -> None:
        self.noise = noise
        self.batches: list[int] = []

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        pass

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        self.batches.append(len(observations))
        return [self._one(o) for o in observations]

    def _one(self, o: Observation) -> np.ndarray:
        strength = np.random.default_rng(_number(o.episode)).uniform(0.1, 1.5)
        wobble = np.random.default_rng(_number(f"{o.episode}/{o.step}")).normal(
            0, self.noise, (4, ACTION_DIM)
        )
        actions = 0.3 * wobble
        push = (o.state[2:4] - o.state[:2]) * 3 - o.state[4:6]
        actions[:, :2] += strength * push
        return actions


class HostedPushPolicy(PushPolicy):
    """The same as a policy actor. Its answer also depends on the sentence and the image, to show mixed-up batches."""

    spec = dataclasses.replace(PushPolicy.spec, name="hosted", resources=Resources(max_batch=4))

    def _one(self, o: Observation) -> np.ndarray:
        if due("policy-hang", o.episode):
            time.sleep(1000)
        if due("policy-gone", o.episode):
            raise ConnectionError("no route to the toy server")
        seen = _number(o.instruction) % 100 + float(o.images[AGENTVIEW].mean())
        return super()._one(o) + 1e-3 * seen


class DyingPolicy(HostedPushPolicy):
    """Its process dies while it is made: each time, or as long as the file `die` is there, which it removes."""

    spec = dataclasses.replace(HostedPushPolicy.spec, name="dying")

    def __init__(self, die: str = "") -> None:
        super().__init__()
        if not die or os.path.exists(die):
            if die:
                os.remove(die)
            os._exit(1)


class GpuPushPolicy(HostedPushPolicy):
    """Requests a GPU (Ray only counts it)."""

    spec = dataclasses.replace(
        HostedPushPolicy.spec, name="gpu", resources=Resources(num_gpus=1, max_batch=4)
    )


class BadPolicy(PushPolicy):
    """Gives invalid answers: nan, shape, long, text, raise. From step `after` on, in episodes with `init`."""

    spec = dataclasses.replace(PushPolicy.spec, name="bad")

    def __init__(self, how: str, after: int = 0, init: int | None = None) -> None:
        super().__init__()
        self.how, self.after, self.init = how, after, init

    def _one(self, o: Observation) -> np.ndarray:
        good = super()._one(o)
        if o.step < self.after or (self.init is not None and f"/init{self.init}/" not in o.episode):
            return good
        if self.how == "raise":
            raise ValueError("the toy policy is confused")
        return {"nan": good * np.nan, "shape": good[:, :6], "long": np.tile(good, (3, 1)), "text": "left"}[
            self.how
        ]


class HostedBadPolicy(BadPolicy):
    spec = dataclasses.replace(HostedPushPolicy.spec, name="hosted_bad")


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@dataclasses.dataclass(frozen=True)
class Finding:
    cell: str
    task: str | None
    init: int | None
    kind: str
    level: str
    message: str


def checks(suite: Suite, premises: bool = False) -> Iterator[Finding]:
    """One error and one unavailable task."""
    for cell in suite.cells:
        for task in cell_tasks(cell):
            if task.unavailable:
                yield Finding(cell.name, task.name, None, "files", "unavailable", task.unavailable)
    yield Finding("push", "push_the_puck_left", 3, "premise", "error", "the puck is off the table")
