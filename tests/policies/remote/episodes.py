"""Whole episodes through a stand-in server. The server executes an expert's stored actions as long as image, prompt,
state and order of the requests are right; so an episode succeeds only if every convention is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from apt_bench.envs.base import AGENTVIEW, WRIST, Env, Observation
from apt_bench.policies.guard import guard
from apt_bench.policies.registry import find_policy
from apt_bench.rollout.episode import LocalClient, run_episode
from apt_bench.suites import EpisodeSpec
from tests.policies.remote.kinds import KINDS
from tests.policies.remote.servers import Fake, Seen

EXECUTED = {"openpi": 5, "starvla": 8, "vla-eval": 1, "groot": 8, "oft": 8}


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
