"""The process of `apt-bench play` that runs the simulator and the policy, and sends what happens to the page's server.

Jobs arrive as pickled objects: a `Job`, or None to stop the one that runs. Messages leave as JSON objects; `kind` is
one of `loading`, `ready`, `beat`, `frame`, `end`, `error` and `done`, or `fatal` before the process ends.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Container, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apt_bench.core.config import argv_of_module, load_object
from apt_bench.core.errors import UserError
from apt_bench.envs.base import AGENTVIEW, WRIST, Env, Observation, Outcome
from apt_bench.policies.guard import GuardedPolicy
from apt_bench.policies.registry import PolicyRef
from apt_bench.policies.shipped import NETWORKS, ShippedPolicy, scene_of
from apt_bench.rollout.episode import LocalClient, episode_phases
from apt_bench.rollout.workers import describe
from apt_bench.serving.play_words import (
    another_sentence,
    asked,
    goal_words,
    in_words,
    story,
    unknown_words,
    verdict,
)
from apt_bench.suites import EpisodeSpec

CAMERAS = (AGENTVIEW, WRIST)
QUALITY = 88
"""Of the JPEG images, out of 100."""

SHIPPED_POLICY = f"{ShippedPolicy.__module__}:{ShippedPolicy.__qualname__}"
APT_POLICY = "apt_bench.policies.apt:AptPolicy"
"""The policies whose vocabulary can be read."""


@dataclass(frozen=True)
class Job:
    """What the worker does next.

    Args:
        episodes: Episodes of one scene, at most two. They are run in turns, decision by decision.
        own: The sentence of the task, whose success is that of the episode.
        only_show: Whether to show the first images of the scene and run nothing.
    """

    episodes: tuple[EpisodeSpec, ...]
    own: str
    only_show: bool = False


class Stopped(Exception):
    """Raised in an episode when the job was stopped."""


class Worker:
    """Runs jobs until the connection is closed."""

    def __init__(self, connection: Connection, ref: PolicyRef) -> None:
        self._connection, self._ref = connection, ref
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._policies: list[GuardedPolicy] = []
        self._envs: list[Env] = []  # one for each episode of a job
        self._env_name = ""

    def serve(self) -> None:
        """Load the policy, then run jobs. An error that leaves the simulator in an unknown state ends the process."""
        threading.Thread(target=self._receive, name="jobs", daemon=True).start()
        try:
            self._send("loading", text="Loading the policy")
            self._policies.append(self._ref.load())
        except UserError as error:
            self._send("fatal", text=str(error))
            return
        self._send("ready", policy=self._policies[0].spec.name)
        while True:
            job = self._jobs.get()
            if job.only_show:
                self._close_envs(1)  # a compiled LIBERO scene takes about 1 GB
            self._run(job)
            self._send("done")

    def _receive(self) -> None:
        try:
            while True:
                job = self._connection.recv()
                if job is None:
                    self._stop.set()
                else:
                    self._stop.clear()
                    self._jobs.put(job)
        except (EOFError, OSError):  # the server has ended
            os._exit(0)

    def _send(self, kind: str, **message: Any) -> None:
        self._connection.send_bytes(json.dumps({"kind": kind, **message}).encode())

    def _run(self, job: Job) -> None:
        """Run the episodes of a job in turns."""
        running = {side: self._episode(job, side) for side in range(len(job.episodes))}
        while running:
            for side, episode in list(running.items()):
                self._send("beat")
                try:
                    if self._stop.is_set():
                        episode.throw(Stopped)
                    else:
                        next(episode)
                except (StopIteration, Stopped):
                    del running[side]
                except UserError as error:
                    self._send("error", side=side, text=str(error))
                    del running[side]
                except Exception as error:
                    self._send("error", side=side, text=describe(error))
                    raise

    def _episode(self, job: Job, side: int) -> Generator[str, None, None]:
        """Run an episode of a job, and yield before each phase. It may end early by `Stopped`."""
        spec = job.episodes[side]
        known = vocabulary(self._ref, spec)
        unknown = [] if known is None else unknown_words(spec.prompt, job.own, known)

        def show(**frame: Any) -> None:
            self._send("frame", side=side, unknown=unknown, **frame)

        env = WatchedEnv(self._environment(spec.env, side), show)
        if job.only_show:
            env.reset(spec)
            return
        policy = self._policy(side)
        client, execute = LocalClient(policy), min(policy.spec.execute, policy.spec.horizon)
        phases = episode_phases(env, client, spec, policy.spec, execute)
        fault = None
        try:
            yield next(phases)
            yield next(phases)  # makes the scene
            env.began = time.perf_counter()  # the scenes of the other episodes are made, too
            fault = (yield from phases).record.error
        except Stopped:
            if not env.ready:
                return
            client.finish(spec, env.outcome())
        self._send("end", side=side, fault=fault, **env.result(spec.prompt, job.own))

    def _environment(self, name: str, side: int) -> Env:
        if self._env_name != name:
            self._close_envs(0)
            self._env_name = name
        if side == len(self._envs):
            make = load_object(name)
            with argv_of_module(name.partition(":")[0]):
                self._envs.append(make())
        return self._envs[side]

    def _close_envs(self, keep: int) -> None:
        while len(self._envs) > keep:
            self._envs.pop().close()

    def _policy(self, side: int) -> GuardedPolicy:
        """The policy of an episode. One that is made for a single episode at a time is loaded once for each."""
        if self._policies[0].spec.resources.placement == "actor":
            return self._policies[0]
        if side == len(self._policies):
            self._policies.append(self._ref.load())
        return self._policies[side]


class WatchedEnv:
    """An environment whose images and events are shown. See `apt_bench.envs.base.Env`.

    Args:
        env: The environment. Its observations must have a `scene` when asked for.
        show: Called at the start, before each decision and at the end.
    """

    def __init__(self, env: Env, show: Any) -> None:
        # Imported here, because MuJoCo takes long and the worker can tell that it is loading.
        from apt_bench.envs.outcome_tracker import OutcomeTracker

        self._env, self._show, self._make_tracker = env, show, OutcomeTracker
        self.decisions = 0
        self.ready = False  # whether the scene has been made

    def reset(
        self, spec: EpisodeSpec, cameras: tuple[str, ...] = (), privileged: bool = False
    ) -> Observation:
        """Start an episode and show its first images."""
        self._spec, self._privileged = spec, privileged
        observation = self._env.reset(spec, cameras, privileged=True)
        assert observation.scene is not None
        self._scene = observation.scene
        self._tracker = self._make_tracker(self._scene)
        self._tracker.start()
        self.began, self.ready = time.perf_counter(), True
        self._send(observation)
        return self._given(observation)

    def step_chunk(self, actions: np.ndarray, render: bool = True) -> Observation:
        """Execute an action chunk, one action at a time, so that every control step is tracked."""
        for i, action in enumerate(actions):
            observation = self._env.step_chunk(action[None], render and i == len(actions) - 1)
            outcome = self._env.outcome()
            self._tracker.update(outcome.steps)
            if outcome.done:
                break
        if render or outcome.done:
            self.decisions += 1
            self._send(observation)
        return self._given(observation)

    def outcome(self) -> Outcome:
        """The state of the episode."""
        return self._env.outcome()

    def frame(self, camera: str = AGENTVIEW, size: int = 256) -> np.ndarray:
        """An image of the current state."""
        return self._env.frame(camera, size)

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()

    def result(self, sentence: str, own: str) -> dict[str, Any]:
        """What happened, ready for JSON. Call it once, at the end."""
        outcome, scene = self._env.outcome(), self._scene
        _, events = self._tracker.finish(outcome.success)
        seconds = time.perf_counter() - self.began
        did: bool | None = outcome.success
        line = "Yes." if outcome.success else "No."
        if sentence != own:
            did, line = verdict(asked(sentence, scene), scene, events)
        return {
            "steps": outcome.steps,
            "budget": self._spec.max_steps,
            "finished": outcome.done,
            "decisions": self.decisions,
            "seconds": round(seconds, 3),
            "first": self._first(),
            "goal": outcome.success,
            "did": did,
            "verdict": line,
            "story": story(scene, events),
        }

    def _given(self, observation: Observation) -> Observation:
        """The observation that the policy gets."""
        return observation if self._privileged else dataclasses.replace(observation, scene=None)

    def _first(self) -> str:
        name = self._tracker.first_contact
        return in_words(name, self._scene.objects) if name else ""

    def _send(self, observation: Observation) -> None:
        scene, spec = self._scene, self._spec
        images = {
            c: _jpeg(observation.images[c] if c in observation.images else self.frame(c)) for c in CAMERAS
        }
        self._show(
            step=observation.step,
            budget=spec.max_steps,
            images=images,
            sentence=observation.instruction,
            first=self._first(),
            goal=goal_words(scene),
            reached=all(map(scene.holds, scene.goal)),
            objects=[in_words(name, scene.objects) for name in scene.objects],
            other=another_sentence(spec.prompt, scene),
        )


def vocabulary(ref: PolicyRef, spec: EpisodeSpec) -> Container[str] | None:
    """The words that the policy's network has a token for. None where that is not known: for other policies, and for a
    tokenizer that makes every word of parts."""
    from apt_bench.models.checkpoint import SHIPPED, read_config  # imported by the policy, too

    if ref.policy not in (SHIPPED_POLICY, APT_POLICY):
        return None
    scene = NETWORKS.get(scene_of(spec.env, spec.args), "")
    weights = scene if ref.policy == SHIPPED_POLICY else str(ref.args["weights"])
    folder = Path(SHIPPED.get(weights, weights))
    if not weights or not folder.is_dir():
        return None
    _, vlm = read_config(folder)
    return set(vlm.mini.words) if vlm.name == "mini" else None


def _jpeg(image: np.ndarray) -> str:
    """An image as a data address."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def main(handle: int) -> None:
    """Serve the connection of this file handle. The first object that arrives is the policy's reference."""
    connection: Connection = Connection(handle)
    try:
        connection.send_bytes(json.dumps({"kind": "loading", "text": "Importing the simulator"}).encode())
        Worker(connection, connection.recv()).serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the server has ended
        sys.exit(0)
