"""One episode, from reset to record: the only loop in which a policy drives an environment."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from apt_bench.core.errors import PolicyFault
from apt_bench.envs.base import ACTION_DIM, Env, Observation, Outcome, action_towards
from apt_bench.policies.base import Policy, PolicySpec
from apt_bench.policies.guard import guard
from apt_bench.runs.records import EpisodeRecord, OutcomeName
from apt_bench.suites import EpisodeSpec

POLICY_FAULT = "policy_fault"
"""Failure class of an episode that ended because the policy raised or answered nonsense."""


class PolicyClient(Protocol):
    """How the loop reaches a policy: in this process, or across a batching actor."""

    def reset(self, episode: str) -> None:
        """This episode begins."""
        ...

    def act(self, observation: Observation) -> tuple[Any, float]:
        """The policy's chunk, checked, and the seconds that the policy itself took for it.

        Raises PolicyFault where the policy raised or answered nonsense; any other exception is the machinery's."""
        ...


class LocalClient:
    """A policy in this process."""

    def __init__(self, policy: Policy) -> None:
        self._policy = guard(policy)

    def reset(self, episode: str) -> None:
        """This episode begins."""
        self._policy.reset([episode])

    def act(self, observation: Observation) -> tuple[Any, float]:
        """A batch of one."""
        start = time.perf_counter()
        return self._policy.act([observation])[0], time.perf_counter() - start


@dataclass(frozen=True)
class Rollout:
    """A finished episode: its record, and the actions that were executed, (steps, 7) float64."""

    record: EpisodeRecord
    actions: np.ndarray


def run_episode(
    env: Env,
    client: PolicyClient,
    spec: EpisodeSpec,
    policy: PolicySpec,
    execute: int,
    attempt: int = 1,
    beat: Callable[[str], None] = lambda phase: None,
) -> Rollout:
    """Run one episode and say how it ended.

    execute: control steps executed of each chunk before the next decision. beat: called at every sign of life with
    the phase that begins (`env` or `policy`); what it raises ends the episode. A PolicyFault ends it as a failure;
    every other exception is the caller's to record as missing data.
    """
    seconds = {"policy": 0.0, "wait": 0.0}
    executed: list[np.ndarray] = []
    decisions, fault = 0, None
    beat("env")
    observation = env.reset(spec, policy.cameras, policy.privileged)
    outcome = env.outcome()
    try:
        beat("policy")
        client.reset(spec.key.id)
        while not outcome.done:
            beat("policy")
            start = time.perf_counter()
            chunk, own = client.act(with_noise_key(observation, spec))
            seconds["policy"] += own
            seconds["wait"] += max(0.0, time.perf_counter() - start - own)
            actions = chunk[:execute]
            decisions += 1
            beat("env")
            # Nobody looks at the last state of a spent budget.
            render = outcome.steps + len(actions) < spec.max_steps
            if policy.actions == "delta":
                observation = env.step_chunk(actions, render)
                before, outcome = outcome.steps, env.outcome()
                executed.append(actions[: outcome.steps - before])
            else:
                observation, outcome, actions = _steer(env, actions, observation, render)
                executed.append(actions)
    except PolicyFault as error:
        fault = f"Policy '{policy.name}' {error}"
    record = EpisodeRecord(
        key=spec.key,
        policy=policy.name,
        prompt=spec.prompt,
        prompt_source=spec.prompt_source,
        prompts=dict(spec.prompts),
        outcome=_name(outcome, spec) if fault is None else "failure",
        steps=outcome.steps,
        decisions=decisions,
        seconds={k: round(v, 4) for k, v in (dict(outcome.seconds) | seconds).items()},
        start_hash=outcome.start_hash,
        end_hash=outcome.end_hash,
        failure=POLICY_FAULT if fault else outcome.failure,
        events=dict(outcome.events),
        flags=spec.flags,
        error=fault,
        attempt=attempt,
    )
    return Rollout(record, np.concatenate(executed) if executed else np.zeros((0, ACTION_DIM)))


def with_noise_key(observation: Observation, spec: EpisodeSpec) -> Observation:
    """The observation with the episode's noise key, where its environment, somebody else's perhaps, gave none."""
    return (
        observation if observation.noise_key else dataclasses.replace(observation, noise_key=spec.noise_key)
    )


def _steer(
    env: Env, targets: np.ndarray, observation: Observation, render: bool
) -> tuple[Observation, Outcome, np.ndarray]:
    """Steer for poses, one per control step; the actions (n, 7) that this took, clipped."""
    actions = []
    outcome = env.outcome()
    for i, target in enumerate(targets):
        actions.append(np.clip(action_towards(target, observation.state), -1, 1))
        observation = env.step_chunk(actions[-1][None], render and i == len(targets) - 1)
        outcome = env.outcome()
        if outcome.done:
            break
    return observation, outcome, np.stack(actions)


def _name(outcome: Outcome, spec: EpisodeSpec) -> OutcomeName:
    if outcome.success:
        return "success"
    return "timeout" if outcome.steps >= spec.max_steps else "failure"


def error_record(spec: EpisodeSpec, policy: str, error: str, attempt: int) -> EpisodeRecord:
    """The record of an episode that is missing: nothing is known about the policy."""
    return EpisodeRecord(
        key=spec.key,
        policy=policy,
        prompt=spec.prompt,
        prompt_source=spec.prompt_source,
        prompts=dict(spec.prompts),
        outcome="error",
        steps=0,
        decisions=0,
        seconds={},
        start_hash="",
        end_hash="",
        flags=spec.flags,
        error=error,
        attempt=attempt,
    )
