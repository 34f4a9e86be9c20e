"""An environment whose episodes begin where a trained policy has brought them.

The scripted expert then shows how to go on from states that the policy reaches: beside a missed object, or above the
container (DAgger, arXiv 1011.0686, with the expert in control instead of as a label only). The expert's part is
recorded alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from apt_bench.core.config import load_object
from apt_bench.envs.base import AGENTVIEW, Env, Observation, Outcome
from apt_bench.policies.guard import GuardedPolicy
from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout.episode import execute_chunk, with_noise_key
from apt_bench.suites import EpisodeSpec


@dataclasses.dataclass(frozen=True)
class PolicyStart:
    """Which policy acts first, and for how many decisions at most; the number is drawn for each episode."""

    policy: PolicyRef
    decisions: int

    def wrap(self, spec: EpisodeSpec) -> EpisodeSpec:
        """The same episode in a `PolicyStartEnv`."""
        args = {"env": spec.env, "args": dict(spec.args), "start": dataclasses.asdict(self)}
        return dataclasses.replace(spec, env=f"{__name__}:PolicyStartEnv", args=args)


class PolicyStartEnv:
    """Runs a trained policy for some decisions in `reset`. An episode that it solves in this time begins anew without
    it."""

    def __init__(self) -> None:
        self._envs: dict[str, Env] = {}
        self._policies: dict[str, GuardedPolicy] = {}

    def reset(
        self, spec: EpisodeSpec, cameras: tuple[str, ...] = (), privileged: bool = False
    ) -> Observation:
        """Start the episode that `PolicyStart.wrap` wrapped."""
        inner = dataclasses.replace(spec, env=spec.args["env"], args=spec.args["args"])
        if inner.env not in self._envs:
            self._envs[inner.env] = load_object(inner.env)()
        self._env = self._envs[inner.env]
        policy = self._policy(spec.args["start"]["policy"])
        both = tuple(dict.fromkeys((*cameras, *policy.spec.cameras)))
        decisions = int(np.random.default_rng(inner.env_seed).integers(spec.args["start"]["decisions"] + 1))
        observation = self._env.reset(inner, both, privileged)
        policy.reset([inner])
        for _ in range(decisions):
            chunk = policy.act([with_noise_key(observation, inner)])[0][: policy.spec.execute]
            observation, outcome, _ = execute_chunk(self._env, policy.spec, chunk, observation, render=True)
            if outcome.done:
                return self._env.reset(inner, both, privileged)
        return observation

    def step_chunk(self, actions: np.ndarray, render: bool = True) -> Observation:
        """See Env.step_chunk."""
        return self._env.step_chunk(actions, render)

    def outcome(self) -> Outcome:
        """See Env.outcome. `steps` counts the policy's control steps too."""
        return self._env.outcome()

    def frame(self, camera: str = AGENTVIEW, size: int = 256) -> np.ndarray:
        """See Env.frame."""
        return self._env.frame(camera, size)

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs.values():
            env.close()

    def _policy(self, fields: dict[str, Any]) -> GuardedPolicy:
        name = repr(sorted(fields.items(), key=str))
        if name not in self._policies:
            self._policies[name] = PolicyRef(**fields).load()
        return self._policies[name]
