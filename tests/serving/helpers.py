"""Toy policies behind a listener in this process, and their clients."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.envs.base import AGENTVIEW, WRIST, Observation, Outcome
from apt_bench.policies.base import Policy, PolicySpec, Resources
from apt_bench.policies.guard import guard
from apt_bench.policies.remote.server import RemotePolicy
from apt_bench.serving.episodes import Episodes
from apt_bench.serving.listener import Listener
from apt_bench.serving.openpi import OpenPiSession
from apt_bench.serving.session import ServedPolicy
from apt_bench.serving.vla_eval import VlaEvalSession
from apt_bench.suites import EpisodeKey, EpisodeSpec

GOLDEN = Path(__file__).parents[1] / "wire" / "golden"
SESSIONS = {"openpi": OpenPiSession, "vla-eval": VlaEvalSession}

STATE = np.array([-0.2, 0.0, 1.17, 3.14, 0.01, -0.09, 0.04, -0.04], np.float32)


class SeeingPolicy:
    """Its chunk depends on images, state, instruction, step and noise key; the row's number is in the second column."""

    spec = PolicySpec(
        "seeing", cameras=(AGENTVIEW, WRIST), horizon=5, execute=3, resources=Resources(max_batch=8)
    )

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.episodes: list[EpisodeSpec] = []
        self.finished: list[tuple[str, Outcome]] = []
        self.seen: list[Observation] = []

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        self.episodes += episodes

    def finish(self, episode: EpisodeSpec, outcome: Outcome) -> None:
        self.finished.append((episode.id, outcome))

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        self.batches.append(len(observations))
        self.seen += observations
        return [self.one(o) for o in observations]

    def one(self, o: Observation) -> np.ndarray:
        if o.instruction == "raise":
            raise RuntimeError("the toy policy is confused")
        if o.instruction == "refuse":
            raise UserError("the toy policy wants another observation")
        chunk = np.zeros((5, 7))
        chunk[:, 0] = [o.images[name].mean() / 255 for name in (AGENTVIEW,)] * 5
        chunk[:, 1] = np.arange(5) / 10
        chunk[:, 2] = o.images[WRIST].mean() / 255
        chunk[:, 3] = o.state[0]
        chunk[:, 4] = len(o.instruction) / 100
        chunk[:, 5] = o.step / 1000
        chunk[:, 6] = int(o.noise_key[:4], 16) / 2**16
        return chunk


class PosePolicy(SeeingPolicy):
    """Its rows are poses: one step of 1 cm along x each, from the state of the decision, and a turn of 0.1 rad."""

    spec = dataclasses.replace(SeeingPolicy.spec, name="pose", actions="pose", cameras=(AGENTVIEW,))

    def one(self, o: Observation) -> np.ndarray:
        chunk = np.tile(np.append(o.state[:6].astype(np.float64), 1.0), (5, 1))
        chunk[:, 0] += 0.01 * np.arange(1, 6)
        return chunk


class CalibratedPolicy(SeeingPolicy):
    """It reads its cameras, as `apt` does."""

    spec = dataclasses.replace(SeeingPolicy.spec, name="calibrated", cameras=(AGENTVIEW,))

    def one(self, o: Observation) -> np.ndarray:
        if AGENTVIEW not in o.cameras:
            raise UserError("no camera")
        chunk = np.zeros((5, 7))
        chunk[:, :3] = o.cameras[AGENTVIEW].pose[:3, 3] / 2
        return chunk


@contextmanager
def serving(policy: Policy, protocol: str, suite: str | None = None) -> Iterator[str]:
    """Serve the policy; yields the address."""
    kind: Any = SESSIONS[protocol]
    served = ServedPolicy(guard(policy), Episodes(suite))
    listener = Listener(lambda: kind(served), kind.health, "127.0.0.1", 0)
    listener.start()
    try:
        yield f"127.0.0.1:{listener.port}"
    finally:
        listener.stop()


def observation(
    instruction: str = "pick it up", shade: int = 100, size: int = 256, state: np.ndarray = STATE
) -> Observation:
    images = {AGENTVIEW: np.full((size, size, 3), shade, np.uint8)}
    images[WRIST] = np.full((size, size, 3), 255 - shade, np.uint8)
    return Observation(images, state, instruction)


def episode(instruction: str = "pick it up", benchmark: str = "toy", init: int = 0) -> EpisodeSpec:
    return EpisodeSpec(
        EpisodeKey("toy", "cell", "task", init, 7),
        env="",
        prompt=instruction,
        prompt_source="file",
        prompts={},
        max_steps=100,
        settle_steps=0,
        args={"benchmark": benchmark},
        group="",
    )


def ask(remote: RemotePolicy, shades: Sequence[int], instruction: str) -> list[np.ndarray]:
    """The chunks of one client in one episode, which asks once for each shade."""
    remote.reset([episode(instruction)])
    try:
        return [remote.act([observation(instruction, shade)])[0] for shade in shades]
    finally:
        remote.close()


def at_once(calls: Sequence[Any]) -> list[Any]:
    """The results of calls that run at the same time, in their order."""
    results: list[Any] = [None] * len(calls)

    def run(i: int) -> None:
        try:
            results[i] = calls[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results
