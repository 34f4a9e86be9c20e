"""Whole episodes through a stand-in server. The server executes an expert's stored actions as long as image, prompt,
state and order of the requests are right; so an episode succeeds only if every convention is."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates

from apt_bench.envs.base import AGENTVIEW, WRIST, Env, Observation
from apt_bench.policies.guard import guard
from apt_bench.policies.preprocessing import centre_crop, jpeg_round_trip, lanczos, prepared, resize
from apt_bench.policies.registry import find_policy
from apt_bench.policies.remote.rest import OpenVlaPolicy
from apt_bench.rollout.episode import LocalClient, run_episode
from apt_bench.suites import EpisodeSpec
from tests.policies.remote.kinds import KINDS
from tests.policies.remote.servers import Fake, Seen

EXECUTED = {"openpi": 5, "starvla": 8, "vla-eval": 1, "groot": 8, "openvla": 1, "oft": 8}


def bilinear(size: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def openvla(image: np.ndarray) -> np.ndarray:
    """JPEG round trip, Lanczos to 224x224, the centre 90 % of the area, written independently of the client."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=95, subsampling=2)
    values = np.asarray(Image.open(file).resize((224, 224), Image.Resampling.LANCZOS)) / 255.0
    at = 111.5 + math.sqrt(0.9) * (np.arange(224) - 111.5)
    place = np.meshgrid(at, at, indexing="ij")
    crop = [map_coordinates(values[..., c], place, order=1) for c in range(3)]
    return np.minimum(255.5 * np.stack(crop, axis=-1), 255).astype(np.uint8)


PREPARED = {"openpi": bilinear(224), "starvla": bilinear(224), "openvla": openvla}
"""What a server must get of a rendered image; the others get it unchanged."""


@dataclasses.dataclass
class Expert:
    """Stored actions (n, 7), and the observation of each decision of a policy that executes `step` of a chunk."""

    env: Env
    spec: EpisodeSpec
    actions: np.ndarray
    memory: dict[int, list[Observation]] = dataclasses.field(default_factory=dict)

    def observations(self, step: int) -> list[Observation]:
        if step not in self.memory:
            found = [self.env.reset(self.spec, (AGENTVIEW, WRIST))]
            for start in range(0, len(self.actions), step):
                found.append(self.env.step_chunk(self.actions[start : start + step]))
            self.memory[step] = found
        return self.memory[step]


def expert_of(env: Env, specs: Iterable[EpisodeSpec]) -> Expert:
    """The oracle's actions in the first of these episodes that it solves."""
    for spec in specs:
        policy = find_policy("oracle").load()
        rollout = run_episode(env, LocalClient(policy), spec, policy.spec, policy.spec.execute)
        if rollout.record.outcome == "success":
            # Its gripper is binary already; the wire of some protocols is float32.
            actions = np.clip(rollout.actions, -1, 1).astype(np.float32).astype(np.float64)
            return Expert(env, spec, actions)
    raise AssertionError("the oracle solves none of these episodes")


class Server:
    """Answers with the next actions of the expert, or zeros from the first wrong request on."""

    def __init__(
        self,
        expert: Expert,
        step: int,
        prepared: Callable[[np.ndarray], np.ndarray],
        tolerance: float,
    ) -> None:
        self.actions, self.step = expert.actions, step
        self.prepared, self.tolerance = prepared, tolerance
        self.expected, self.prompt = expert.observations(step), expert.spec.prompt
        self.number, self.wrong = 0, ""

    def __call__(self, seen: Seen) -> np.ndarray:
        start = self.number * self.step
        if not self.wrong and start < len(self.actions):
            self.wrong = self.judge(seen, self.expected[self.number])
        self.number += 1
        chunk = np.zeros((16, 7))
        chunk[:, 6] = -1
        if not self.wrong and start < len(self.actions):
            rest = self.actions[start : start + 16]
            chunk[: len(rest)] = rest
        return chunk

    def judge(self, seen: Seen, expected: Observation) -> str:
        if seen.prompt != self.prompt:
            return "prompt"
        for name, image in (("agentview", seen.agentview), ("wrist", seen.wrist)):
            if image is None:
                continue
            if np.abs(self.prepared(expected.images[name]).astype(int) - image).mean() > self.tolerance:
                return name
        if seen.state is not None and np.abs(seen.state - expected.state).max() > 1e-3:
            return "state"
        return ""


def run(expert: Expert, name: str, fake: Fake, server: Server) -> str:
    fake.answer = server
    with fake:
        policy: Any = KINDS[name].policy(fake)
        server.number, server.wrong = 0, ""
        spec = dataclasses.replace(expert.spec, max_steps=len(expert.actions) + 10)
        rollout = run_episode(expert.env, LocalClient(guard(policy)), spec, policy.spec, policy.spec.execute)
        policy.close()
    assert rollout.record.error is None
    assert not fake.wrong
    return str(rollout.record.outcome)


def server_for(expert: Expert, name: str) -> tuple[Fake, Server]:
    right = PREPARED.get(name, lambda image: image)
    server = Server(expert, EXECUTED[name], right, 0.1 if name == "openvla" else 1)
    if name == "openvla":
        server.prompt = server.prompt.lower()
    return KINDS[name].server(), server


OPENVLA_WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "no JPEG": lambda image: centre_crop(lanczos(image, 224), 0.9),
    "bilinear": lambda image: centre_crop(resize(jpeg_round_trip(image), (224, 224)), 0.9),
    "no crop": lambda image: lanczos(jpeg_round_trip(image), 224),
    "crop by side": lambda image: centre_crop(lanczos(jpeg_round_trip(image), 224), 0.81),
    "rotated": lambda image: prepared(image[::-1, ::-1], "jpeg_lanczos_crop", (224, 224)),
}
"""Preprocessing of OpenVLA with one step wrong."""


def fails_with_openvlas_image(
    change: Callable[[np.ndarray], np.ndarray], expert: Expert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assert that an episode with this preprocessing fails, and that the server saw a wrong image."""
    monkeypatch.setattr(OpenVlaPolicy, "_image", lambda self, o, camera: change(o.images[camera]))
    fake, server = server_for(expert, "openvla")
    assert run(expert, "openvla", fake, server) != "success"
    assert (server.wrong, server.number >= 1) == ("agentview", True)
