"""The check of a policy's answers finds inputs that do not matter, and wrong scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from apt_bench import EpisodeSpec, Observation, PolicySpec
from apt_bench.policies.base import Interface
from apt_bench.policies.canaries import STATE, check_answers, stored_observation
from apt_bench.policies.guard import guard
from apt_bench.suites import load_suite

SPEC = load_suite("rigid_pick_place").select(["so"], ["0"], episodes=1)[0]


class Sees:
    """Answers from the inputs that `uses` names."""

    spec = PolicySpec("sees", cameras=("agentview", "wrist"))

    def __init__(self, uses: str, scale: float = 0.3) -> None:
        self.uses, self.scale, self.prompts, self.calls = uses, scale, [], 0

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        self.prompts += [e.prompt for e in episodes]

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        (o,) = observations
        self.calls += 1
        seed = 1.0
        if "image" in self.uses:
            seed += sum(float(image[:, :100].mean()) for image in o.images.values())
        if "words" in self.uses:
            seed += len(o.instruction)
        if "noise" in self.uses:
            seed += self.calls
        return [self.scale * np.sin(seed * np.arange(1, 71)).reshape(10, 7)]


def warnings(policy: Sees) -> list[str]:
    return list(check_answers(guard(policy), SPEC, stored_observation(SPEC))["warnings"])


def test_a_policy_that_uses_its_inputs_gets_no_warning() -> None:
    policy = Sees("image words")
    assert warnings(policy) == []
    assert policy.prompts.count(SPEC.prompt) == 4
    assert len(set(policy.prompts)) == 2


@pytest.mark.parametrize(
    ("uses", "scale", "expected"),
    [
        ("words", 0.3, ["does not change with the image"]),
        ("image", 0.3, ["does not change with the instruction"]),
        ("", 0.3, ["does not change with the image", "does not change with the instruction"]),
        ("image words", 40.0, ["values up to 40", "at their limits"]),
    ],
)
def test_what_stands_out_is_named(uses: str, scale: float, expected: list[str]) -> None:
    found = warnings(Sees(uses, scale))
    assert len(found) == len(expected)
    assert all(part in text for part, text in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("state", "valid"),
    [
        (STATE, True),
        ([0.1, -0.3, 1.17, -3.14, 0, 0.09, 0.04, -0.04], True),
        ([100, 0, 0, 3.14, 0, 0, 0.04, -0.04], False),  # mm
        ([0.1, 0, 0, 180, 0, 0, 0.04, -0.04], False),  # degrees
        ([0.1, 0, 0, 3.14, 0, 0, 0.04, 0.04], False),  # the sign of the second finger
        ([0.1, 0, 0, 3.14, 0, 0, 1, -1], False),
        ([0.1, 0, 0, np.nan, 0, 0, 0.04, -0.04], False),
        ([0.1, 0, 0, 3.14, 0, 0, 0.04], False),
    ],
)
def test_the_state_of_a_policy_that_expects_an_arms(state: Sequence[float], valid: bool) -> None:
    def found(policy: Sees) -> list[str]:
        observation = replace(stored_observation(SPEC), state=np.array(state, np.float32))
        return list(check_answers(guard(policy), SPEC, observation)["warnings"])

    policy = Sees("image words")
    assert found(policy) == []
    policy.spec = replace(policy.spec, interface=Interface("none"))  # type: ignore[misc]
    assert found(policy) == []
    policy.spec = replace(policy.spec, interface=Interface())  # type: ignore[misc]
    assert [text.partition(" is ")[0] for text in found(policy)] == ([] if valid else ["The state"])


def test_noise_of_the_policy_is_not_taken_for_an_effect() -> None:
    found = check_answers(guard(Sees("noise")), SPEC, stored_observation(SPEC))
    assert found["repeat"] > 0.1
    assert any("instruction" in text for text in found["warnings"])
