"""Whole episodes in the tabletop simulator. The server executes an expert's stored actions, as long as image, prompt,
state and order of the requests are right; so the episode succeeds only if every convention is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.policies.guard import guard
from apt_bench.policies.registry import find_policy
from apt_bench.rollout.episode import LocalClient, run_episode
from apt_bench.suites import EpisodeSpec, load_suite
from tests.policies.remote.kinds import KINDS
from tests.policies.remote.servers import Fake, Seen

EXECUTED = {"openpi": 5, "starvla": 8, "vla-eval": 1, "groot": 8, "oft": 8}


@dataclasses.dataclass
class Expert:
    """Stored actions (n, 7), and the observation of each decision of a policy that executes `step` of a chunk."""

    env: TabletopEnv
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


@pytest.fixture(scope="module")
def expert() -> Iterator[Expert]:
    env = TabletopEnv()
    for spec in load_suite("rigid_pick_place").select(["so"], [], 3):
        policy = find_policy("oracle").load()
        rollout = run_episode(env, LocalClient(policy), spec, policy.spec, policy.spec.execute)
        if rollout.record.outcome == "success":
            # Its gripper is binary already; the wire of some protocols is float32.
            actions = np.clip(rollout.actions, -1, 1).astype(np.float32).astype(np.float64)
            yield Expert(env, spec, actions)
            break
    env.close()


class Server:
    """Answers with the next actions of the expert, or zeros from the first wrong request on."""

    def __init__(self, expert: Expert, step: int, size: int) -> None:
        self.actions, self.step, self.size = expert.actions, step, size
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
            whole = Image.fromarray(expected.images[name])
            resized = np.asarray(whole.resize((self.size, self.size), Image.Resampling.BILINEAR))
            if image is not None and np.abs(resized.astype(int) - image).mean() > 1:
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
    return KINDS[name].server(), Server(expert, EXECUTED[name], 224 if name in ("openpi", "starvla") else 256)


@pytest.mark.parametrize("name", EXECUTED)
def test_an_episode_through_the_server_succeeds(name: str, expert: Expert) -> None:
    fake, server = server_for(expert, name)
    if name == "vla-eval":
        fake.steps = 1  # the stand-in looks at every observation
    assert run(expert, name, fake, server) == "success"
    assert server.wrong == ""


def images(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Observation], Observation]:
    return lambda o: dataclasses.replace(o, images={name: change(image) for name, image in o.images.items()})


BROKEN: dict[str, tuple[str, Callable[[Observation], Observation]]] = {
    "upside down": ("agentview", images(lambda image: image[::-1].copy())),
    "mirrored": ("agentview", images(lambda image: image[:, ::-1].copy())),
    "blue for red": ("agentview", images(lambda image: image[..., ::-1].copy())),
    "wrong wrist": (
        "wrist",
        lambda o: dataclasses.replace(o, images={**o.images, WRIST: o.images[AGENTVIEW]}),
    ),
    "old prompt": ("prompt", lambda o: dataclasses.replace(o, instruction="pick up the black bowl")),
    "sign of the rotation": (
        "state",
        lambda o: dataclasses.replace(o, state=o.state * [1, 1, 1, -1, -1, -1, 1, 1]),
    ),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", ["openpi", "vla-eval"])
def test_with_one_convention_broken_it_fails(
    name: str, how: str, expert: Expert, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, change = BROKEN[how]
    kind = KINDS[name].client
    right = kind._infer
    monkeypatch.setattr(kind, "_infer", lambda self, observation: right(self, change(observation)))
    fake, server = server_for(expert, name)
    if name == "vla-eval":
        fake.steps = 1
    assert run(expert, name, fake, server) != "success"
    assert (server.wrong, server.number >= 1) == (what, True)


@pytest.mark.parametrize("name", ["openpi", "vla-eval", "groot"])
def test_with_the_gripper_of_another_convention_it_fails(name: str, expert: Expert) -> None:
    fake, server = server_for(expert, name)
    if name == "vla-eval":
        fake.steps = 1
    fake.gripper = lambda g: (
        1 - KINDS[name].server.gripper(g) if name == "groot" else np.where(g < 0, 1.0, 0.01)
    )  # type: ignore[method-assign, assignment]
    assert run(expert, name, fake, server) != "success"


def test_with_another_number_of_executed_actions_it_fails(expert: Expert) -> None:
    fake, server = server_for(expert, "openpi")
    server.step = 10  # the server believes that all of its chunk is executed
    server.expected = expert.observations(10)
    assert run(expert, "openpi", fake, server) != "success"
