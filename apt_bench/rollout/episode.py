"""One episode, from reset to record: the only loop in which a policy controls an environment."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator
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
"""Failure class of an episode that ended because the policy raised an exception or gave an invalid answer."""


class PolicyClient(Protocol):
    """How the loop calls a policy: in this process, or through a batching actor."""

    def reset(self, episode: EpisodeSpec) -> None:
        """Announce that this episode begins."""
        ...

    def finish(self, episode: EpisodeSpec, outcome: Outcome) -> dict[str, Any]:
        """Announce that this episode ended; the policy's notes for its record."""
        ...

    def act(self, observation: Observation) -> tuple[Any, float]:
        """The policy's action chunk, checked, and the seconds that the policy itself took.

        Raises:
            PolicyFault: The policy raised an exception or gave an invalid answer. Any other exception is an
                infrastructure error.
        """
        ...


class LocalClient:
    """A policy in this process."""

    def __init__(self, policy: Policy) -> None:
        self._policy = guard(policy)

    def reset(self, episode: EpisodeSpec) -> None:
        """Announce that this episode begins."""
        self._policy.reset([episode])

    def finish(self, episode: EpisodeSpec, outcome: Outcome) -> dict[str, Any]:
        """Announce that this episode ended; the policy's notes for its record."""
        return self._policy.finish(episode, outcome)

    def act(self, observation: Observation) -> tuple[Any, float]:
        """A batch of one."""
        start = time.perf_counter()
        return self._policy.act([observation])[0], time.perf_counter() - start


@dataclass(frozen=True)
class Rollout:
    """A finished episode: its record and the executed actions, (steps, 7) float64."""

    record: EpisodeRecord
    actions: np.ndarray


def run_episode(
    env: Env,
    client: PolicyClient,
    spec: EpisodeSpec,
    policy: PolicySpec,
    execute: int,
    attempt: int = 1,
    heartbeat: Callable[[str], None] = lambda phase: None,
) -> Rollout:
    """Run one episode.

    Args:
        heartbeat: Called with the phase that begins, `env` or `policy`. What it raises ends the episode.

    The other arguments and the result are those of `episode_phases`.
    """
    phases = episode_phases(env, client, spec, policy, execute, attempt)
    while True:
        try:
            phase = next(phases)
        except StopIteration as end:
            rollout: Rollout = end.value
            return rollout
        heartbeat(phase)


def episode_phases(
    env: Env,
    client: PolicyClient,
    spec: EpisodeSpec,
    policy: PolicySpec,
    execute: int,
    attempt: int = 1,
) -> Generator[str, None, Rollout]:
    """Run one episode phase by phase, so that the caller can run several in turns.

    Args:
        env: The environment.
        client: Calls the policy.
        spec: The episode.
        policy: The policy's declaration.
        execute: Execute horizon: control steps executed of each chunk before the next decision.
        attempt: Number of the attempt, from 1.

    Yields:
        The phase that begins, `env` or `policy`.

    Returns:
        The record and the executed actions. A PolicyFault ends the episode as a failure. The caller records every
        other exception as missing data.
    """
    seconds = {"policy": 0.0, "wait": 0.0}
    executed: list[np.ndarray] = []
    decisions, fault = 0, None
    yield "env"
    observation = env.reset(spec, policy.cameras, policy.privileged)
    outcome = env.outcome()
    try:
        yield "policy"
        client.reset(spec)
        while not outcome.done:
            yield "policy"
            start = time.perf_counter()
            chunk, own = client.act(with_noise_key(observation, spec))
            seconds["policy"] += own
            seconds["wait"] += max(0.0, time.perf_counter() - start - own)
            actions = chunk[:execute]
            decisions += 1
            yield "env"
            # No decision follows once the step budget is spent, so no images are needed.
            render = outcome.steps + len(actions) < spec.max_steps
            observation, outcome, actions = execute_chunk(env, policy, actions, observation, render)
            executed.append(actions)
    except PolicyFault as error:
        fault = f"Policy '{policy.name}' {error}"
    notes = client.finish(spec, outcome)
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
        notes=notes,
    )
    return Rollout(record, np.concatenate(executed) if executed else np.zeros((0, ACTION_DIM)))


def with_noise_key(observation: Observation, spec: EpisodeSpec) -> Observation:
    """The observation with the episode's noise key, where its environment set none."""
    return (
        observation if observation.noise_key else dataclasses.replace(observation, noise_key=spec.noise_key)
    )


def execute_chunk(
    env: Env, policy: PolicySpec, chunk: np.ndarray, observation: Observation, render: bool
) -> tuple[Observation, Outcome, np.ndarray]:
    """Execute a chunk of a policy.

    Args:
        env: The environment.
        policy: The policy's declaration; it says what a row of the chunk is.
        chunk: The rows to execute, (n, 7).
        observation: The observation before it.
        render: Whether to render images after it.

    Returns:
        The next observation, the episode's state, and the actions that were executed, (m, 7) with m <= n.
    """
    if policy.actions == "delta":
        before = env.outcome().steps
        observation = env.step_chunk(chunk, render)
        outcome = env.outcome()
        return observation, outcome, chunk[: outcome.steps - before]
    actions = []
    outcome = env.outcome()
    for i, target in enumerate(chunk):
        actions.append(np.clip(action_towards(target, observation.state), -1, 1))
        observation = env.step_chunk(actions[-1][None], render and i == len(chunk) - 1)
        outcome = env.outcome()
        if outcome.done:
            break
    return observation, outcome, np.stack(actions)


def _name(outcome: Outcome, spec: EpisodeSpec) -> OutcomeName:
    if outcome.success:
        return "success"
    return "timeout" if outcome.steps >= spec.max_steps else "failure"


def error_record(spec: EpisodeSpec, policy: str, error: str, attempt: int) -> EpisodeRecord:
    """The record of a lost episode, which is not a result of the policy."""
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
