"""An environment that records: `apt-bench collect` puts it between the policy and the real environment."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from apt_bench.core.config import load_object
from apt_bench.demos.demonstration import MAX_OPENING, CameraTrack, DemoInfo, Demonstration
from apt_bench.demos.hdf5_writer import write_hdf5
from apt_bench.envs.base import AGENTVIEW, Camera, Env, Observation, Outcome, Scene
from apt_bench.envs.segmentation import Segmenter
from apt_bench.policies.preprocessing import shrink
from apt_bench.suites import EpisodeSpec

LOOSE = "loose"
"""Folder of demonstrations that are not in the dataset yet, one file each."""


@dataclass(frozen=True)
class Recording:
    """What is recorded, and where.

    Attributes:
        out: Folder of the dataset, which every worker must be able to write.
        cameras: Cameras to record.
        size: Side of the images, in pixels.
        policy: Name of the policy, for the metadata.
        control_hz: Control steps per second.
        segmentation: Whether to record segmentation.
        failures: Whether to keep failed episodes too.
        image_every: Control steps from one image to the next. Steps between repeat it.
        simulator: Package -> version.
    """

    out: str
    cameras: tuple[str, ...]
    size: int
    policy: str
    control_hz: int = 20
    segmentation: bool = False
    failures: bool = False
    image_every: int = 1
    simulator: Mapping[str, str] = field(default_factory=dict)

    def wrap(self, spec: EpisodeSpec) -> EpisodeSpec:
        """The same episode in a `RecordingEnv`."""
        args = {"env": spec.env, "args": dict(spec.args), "recording": dataclasses.asdict(self)}
        return dataclasses.replace(spec, env=f"{__name__}:RecordingEnv", args=args)


@dataclass(frozen=True)
class _Moment:
    """Observation and simulator state just before an action."""

    observation: Observation
    images: Mapping[str, np.ndarray]
    sim: np.ndarray | None
    joints: np.ndarray | None
    labels: Mapping[str, np.ndarray]


class RecordingEnv:
    """Executes every chunk action by action, records before each, and writes the episode to a file of its own.

    Successful episodes are written, with `failures` all. The policy receives the same observations as without it.
    Actions are rounded to float32 before they are executed, so that every file format replays them bit for bit.
    """

    def __init__(self) -> None:
        self._envs: dict[str, Env] = {}
        self._segmenter = Segmenter()

    def reset(
        self, spec: EpisodeSpec, cameras: tuple[str, ...] = (), privileged: bool = False
    ) -> Observation:
        """Start the episode that `Recording.wrap` wrapped."""
        recording = dict(spec.args["recording"])
        self._recording = Recording(**{**recording, "cameras": tuple(recording["cameras"])})
        self._spec = dataclasses.replace(spec, env=spec.args["env"], args=spec.args["args"])
        if self._spec.env not in self._envs:
            self._envs[self._spec.env] = load_object(self._spec.env)()
        self._env = self._envs[self._spec.env]
        self._asked, self._privileged = cameras, privileged
        self._moments: list[_Moment] = []
        self._actions: list[np.ndarray] = []
        self._write_seconds = 0.0
        both = tuple(dict.fromkeys((*self._recording.cameras, *cameras)))
        self._now = self._env.reset(self._spec, both, privileged=True)
        return self._view()

    def step_chunk(self, actions: np.ndarray, render: bool = True) -> Observation:
        """See Env.step_chunk."""
        for i, action in enumerate(np.asarray(actions, dtype=np.float32).astype(np.float64)):
            self._moments.append(self._moment())
            self._actions.append(np.clip(action, -1.0, 1.0))
            asked = bool(self._asked) and render and i == len(actions) - 1
            due = len(self._actions) % self._recording.image_every == 0
            self._now = self._env.step_chunk(action[None], render=asked or due)
            outcome = self._env.outcome()
            if outcome.done:
                if outcome.success or self._recording.failures:
                    self._write(outcome)
                break
        return self._view()

    def outcome(self) -> Outcome:
        """See Env.outcome; `seconds` also has `write`, the time spent on the file."""
        outcome = self._env.outcome()
        return dataclasses.replace(outcome, seconds={**outcome.seconds, "write": self._write_seconds})

    def frame(self, camera: str = AGENTVIEW, size: int = 256) -> np.ndarray:
        """See Env.frame."""
        return self._env.frame(camera, size)

    def close(self) -> None:
        """Close the environments."""
        self._segmenter.close()
        for env in self._envs.values():
            env.close()

    def _view(self) -> Observation:
        """The policy's part of the observation."""
        now = self._now
        return dataclasses.replace(
            now,
            images={k: v for k, v in now.images.items() if k in self._asked},
            cameras={k: v for k, v in now.cameras.items() if k in self._asked},
            scene=now.scene if self._privileged else None,
        )

    def _moment(self) -> _Moment:
        now, recording = self._now, self._recording
        sim = joints = None
        images: Mapping[str, np.ndarray]
        if not self._moments or len(self._moments) % recording.image_every == 0:
            images = {n: shrink(now.images[n], recording.size) for n in recording.cameras}
        else:
            images, seen = self._moments[-1].images, self._moments[-1].observation
            now = dataclasses.replace(now, images=seen.images, cameras=seen.cameras)
        labels: Mapping[str, np.ndarray] = {}
        if now.scene is not None:
            data = now.scene.data
            sim = np.concatenate([[data.time], data.qpos, data.qvel])
            joints = np.array(data.qpos[arm_joints(now.scene)])
            if recording.segmentation:
                shown = {n: now.cameras[n] for n in recording.cameras}
                labels = self._segmenter.labels(now.scene, shown, recording.size)
        return _Moment(now, images, sim, joints, labels)

    def _write(self, outcome: Outcome) -> None:
        began = time.perf_counter()
        path = Path(self._recording.out) / LOOSE / f"{digest(self._spec.key.id)}.hdf5"
        write_hdf5(path, [self._demonstration(outcome)])
        self._write_seconds = time.perf_counter() - began

    def _demonstration(self, outcome: Outcome) -> Demonstration:
        spec, recording, moments = self._spec, self._recording, self._moments
        first = moments[0].observation
        info = DemoInfo(
            episode=spec.key.id,
            steps=len(moments),
            instruction=first.instruction,
            later=tuple(
                (t, b.observation.instruction)
                for t, (a, b) in enumerate(pairwise(moments), 1)
                if a.observation.instruction != b.observation.instruction
            ),
            success=outcome.success,
            key=spec.key,
            start_hash=outcome.start_hash,
            end_hash=outcome.end_hash,
            policy=recording.policy,
            scene={"env": spec.env, "args": dict(spec.args), "simulator": dict(recording.simulator)},
            max_opening=first.scene.robot.max_opening if first.scene else MAX_OPENING,
            control_hz=recording.control_hz,
            image_every=recording.image_every,
        )
        tracks = {
            n: track([m.observation.cameras[n] for m in moments], first.images[n].shape[0], recording.size)
            for n in recording.cameras
            if n in first.cameras
        }
        return Demonstration(
            info=info,
            images={n: np.stack([m.images[n] for m in moments]) for n in recording.cameras},
            state=np.stack([m.observation.state for m in moments]),
            actions=np.stack(self._actions),
            cameras=tracks,
            joints=_stack([m.joints for m in moments]),
            sim_states=_stack([m.sim for m in moments]),
            segmentation={n: np.stack([m.labels[n] for m in moments]) for n in moments[0].labels},
            segments=self._segmenter.names if moments[0].labels else (),
        )


def _stack(arrays: list[np.ndarray | None]) -> np.ndarray | None:
    return np.stack([a for a in arrays if a is not None]) if arrays[0] is not None else None


def arm_joints(scene: Scene) -> np.ndarray:
    """Addresses in qpos of the arm's joints, from base to hand: all joints above the grip site."""
    model, found = scene.model, []
    body = model.site_bodyid[scene.robot.grip_site]
    while body:
        first, count = model.body_jntadr[body], model.body_jntnum[body]
        found += [model.jnt_qposadr[j] for j in range(first, first + count)]
        body = model.body_parentid[body]
    return np.array(found[::-1], dtype=int)


def track(cameras: list[Camera], delivered: int, size: int) -> CameraTrack:
    """Calibration of one camera over an episode, for images scaled from `delivered` to `size` pixels per side. Pixel
    centres have integer coordinates."""
    factor = delivered / size
    K = np.array(cameras[0].K, dtype=np.float64)
    K[:2] /= factor
    K[:2, 2] = (cameras[0].K[:2, 2] + 0.5) / factor - 0.5
    return CameraTrack(K, np.stack([c.pose for c in cameras]).astype(np.float64))


def digest(text: str) -> str:
    """A file name for an episode: 16 hex digits of its name's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
