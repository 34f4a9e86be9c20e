"""Checks of a served policy before a run: does its answer depend on the image and on the instruction?

A server that ignores an input (a wrong key, a version of a library that drops the image) answers without an error, and
only its scores show it. So one observation is sent with another image, another instruction and no image, and the
answers are compared. The results are stored in `run.json`; reports show the warnings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apt_bench.envs.base import AGENTVIEW, WRIST, Observation, Outcome
from apt_bench.policies.guard import GuardedPolicy
from apt_bench.suites import EpisodeSpec

FRAME = Path(__file__).parent / "canary_frame"
"""Both cameras' images of the first decision in `libero_pro`, cell `object_task`, task 0, initial state 0."""

STATE = (-0.14846, 0.0, 0.26128, 3.14034, 0.00077, -0.08922, 0.03872, -0.03872)
"""State of that decision, see `Observation.state`."""

OTHER_INSTRUCTION = "open the top drawer of the cabinet"

LARGE = 1.5
"""An action is in [-1, 1]. Larger ones are clipped; far larger ones have wrong un-normalisation statistics."""

SATURATED = 0.5
"""Share of position and rotation deltas at their limits above which the statistics are probably wrong."""

REACH = 2.0
"""Distance (m) from the origin of the world frame within which the end effector of LIBERO's arm is in every scene."""

OPEN = 0.045
"""Distance (m) of a finger from the closed position that a Panda's gripper cannot reach: its fingers move 0.04 m."""


def stored_observation(spec: EpisodeSpec) -> Observation:
    """The stored frame as the first observation of an episode."""
    images = {name: np.array(Image.open(FRAME / f"{name}.jpg")) for name in (AGENTVIEW, WRIST)}
    return Observation(
        images=images,
        state=np.array(STATE, dtype=np.float32),
        instruction=spec.prompt,
        episode=spec.id,
        noise_key=spec.noise_key,
    )


def check_answers(policy: GuardedPolicy, spec: EpisodeSpec, observation: Observation) -> dict[str, Any]:
    """Compare a policy's answers to one observation and to changed ones.

    Args:
        policy: The policy. It runs five episodes of one decision.
        spec: The episode to announce to it.
        observation: The observation of the first decision, with both cameras.

    Returns:
        `repeat`, `image`, `instruction`, `blank`: the mean absolute change of the chunk's first six numbers when the
        same observation is sent again, with mirrored images, with another instruction, with black images. `largest`:
        the largest absolute value of the first answer. `saturated`: the share of its position and rotation deltas at or
        beyond 0.99. `warnings`: sentences for people, also about a state that the policy cannot expect.

    Raises:
        UserError: As the policy does.
        ServerLost: As the policy does.
    """
    seen = {name: observation.images[name] for name in policy.spec.cameras if name in observation.images}
    observation = dataclasses.replace(observation, images=seen)
    other = "close the microwave" if observation.instruction == OTHER_INSTRUCTION else OTHER_INSTRUCTION
    changed = {
        "repeat": observation,
        "image": _with_images(observation, lambda image: image[:, ::-1]),
        "instruction": dataclasses.replace(observation, instruction=other),
        "blank": _with_images(observation, np.zeros_like),
    }
    first = _answer(policy, spec, observation)
    found: dict[str, Any] = {
        name: float(np.abs(_same_length(_answer(policy, spec, one), first)).mean())
        for name, one in changed.items()
    }
    motion = np.abs(first[:, :6])
    found["largest"] = float(np.abs(first).max())
    found["saturated"] = float((motion >= 0.99).mean())
    found = {name: round(value, 6) for name, value in found.items()}
    warnings = _warnings(found, bool(seen), policy.spec.actions)
    if policy.spec.interface and policy.spec.interface.state == "position_axis_angle_fingers":
        warnings += _state_warnings(observation.state)
    return {**found, "warnings": warnings}


def _answer(policy: GuardedPolicy, spec: EpisodeSpec, observation: Observation) -> np.ndarray:
    own = dataclasses.replace(spec, prompt=observation.instruction)
    policy.reset([own])
    (chunk,) = policy.act([observation])
    policy.finish(own, Outcome(success=False, done=True, steps=0, start_hash="", end_hash=""))
    return chunk


def _same_length(chunk: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The difference of two chunks over the decisions that both have."""
    rows = min(len(chunk), len(first))
    return np.asarray(chunk[:rows, :6] - first[:rows, :6])


def _with_images(observation: Observation, change: Any) -> Observation:
    images = {name: np.ascontiguousarray(change(image)) for name, image in observation.images.items()}
    return dataclasses.replace(observation, images=images)


def _warnings(found: Mapping[str, float], sees: bool, actions: str) -> list[str]:
    noise = 2 * found["repeat"] + 1e-6
    change = "does not change with" if found["repeat"] < 1e-6 else "varies by itself, and no more with"
    warnings = []
    if sees and max(found["image"], found["blank"]) <= noise:
        warnings.append(f"The policy's answer {change} the image.")
    if found["instruction"] <= noise:
        warnings.append(f"The policy's answer {change} the instruction.")
    if actions == "delta" and found["largest"] > LARGE:
        warnings.append(
            f"The policy answers values up to {found['largest']:.3g}; actions are in [-1, 1]. Are they un-normalised?"
        )
    if actions == "delta" and found["saturated"] > SATURATED:
        warnings.append(
            f"{100 * found['saturated']:.0f}% of the policy's position and rotation deltas are at their limits. Are "
            "the un-normalisation statistics the checkpoint's?"
        )
    return warnings


def _state_warnings(state: np.ndarray) -> list[str]:
    """A sentence where the state cannot be an arm's `position_axis_angle_fingers`."""
    if state.shape == (8,):
        rotation, fingers = np.linalg.norm(state[3:6]), state[6:8] * (1, -1)
        if (
            np.linalg.norm(state[:3]) <= REACH
            and rotation <= 2 * np.pi
            and (fingers >= -0.005).all()
            and (fingers <= OPEN).all()
        ):
            return []
    return [
        f"The state is {np.round(state, 3).tolist()}; this policy expects position (m), axis-angle (rad) and the two "
        "finger positions (m, 0 to 0.04 and 0 to -0.04)."
    ]


def summary(found: Mapping[str, Any]) -> Sequence[str]:
    """The results as lines for a person."""
    return [
        "change of the answer (mean over position and rotation): "
        + ", ".join(f"{name} {found[name]:.4f}" for name in ("repeat", "image", "instruction", "blank")),
        f"largest value {found['largest']:.3f}; {100 * found['saturated']:.0f}% of the deltas at their limits",
    ]
