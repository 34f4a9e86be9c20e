"""A traced network gives the same numbers, bit for bit, whatever its inputs of a shape are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from apt_bench.models import traced
from apt_bench.models.inputs import RobotState, VLFeatures
from apt_bench.models.traced import Traced
from apt_bench.models.vla import VLA
from tests.models.test_expert import VARIANTS
from tests.models.tiny import images, robot, vla

SENTENCES = ("red cube", "the bowl", "move the red cube to the bowl", "bowl")
CHANGES = [
    *VARIANTS,
    {"plane": 0.4, "lower_planes": (0.0,), "proprio": True},
    {"arch": "pi"},
    {"arch": "groot"},
]


def traces(net: VLA) -> dict[str, Traced]:
    expert = net.expert
    return {
        "encode_context": Traced(expert.encode_context, expert),
        "denoise": Traced(expert.denoise, expert),
    }


def inputs(net: VLA, samples: int) -> Iterator[tuple[VLFeatures, RobotState, Tensor]]:
    """Of each length of sentence several inputs: other images, words, cameras, arms and noise; at last, no arm."""
    for seed in range(8):
        sentence = SENTENCES[seed % len(SENTENCES)]
        features = net.features(
            net.vlm.prepare(images(samples, seed=seed), [sentence] * samples, blind=net.blind)
        )
        state = robot(samples, seed=seed)
        if seed == 7:
            gone = torch.zeros_like(state.arm_valid)
            state = dataclasses.replace(state, arm_valid=gone, camera_present=state.camera_present & gone)
        noise = torch.randn(samples, 1, 4, 10, generator=torch.Generator().manual_seed(seed))
        yield features, state, noise


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("change", CHANGES, ids=str)
@torch.inference_mode()
def test_samples_are_the_same_bit_for_bit(change: dict, stage: int, samples: int) -> None:
    net = vla("mini", stage=stage, **{"arch": "apt", **change})
    kept = traces(net)
    for features, state, noise in inputs(net, samples):
        for steps in (2, 5):
            plain = net.expert.sample(features, state, noise, steps)
            assert torch.equal(plain, net.expert.sample(features, state, noise, steps, **kept))
    lengths = 1 if stage == 1 else 3
    assert len(kept["denoise"]._traces) == lengths


@torch.inference_mode()
def test_a_trace_follows_its_parameters_and_leaves_them_trainable() -> None:
    net = vla("mini", "apt", 2)
    kept = traces(net)
    features, state, noise = next(inputs(net, 1))
    before = net.expert.sample(features, state, noise, 2, **kept)
    assert all(p.requires_grad for p in net.expert.parameters())
    for p in net.expert.parameters():
        p.data += 0.1
    after = net.expert.sample(features, state, noise, 2, **kept)
    assert torch.equal(after, net.expert.sample(features, state, noise, 2))
    assert not torch.equal(before, after)


def test_after_the_last_trace_the_function_itself_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "MOST", 2)
    layer = torch.nn.Linear(3, 3)
    called = []

    def double(x: Tensor, kept: tuple[Tensor, str]) -> dict[str, tuple[Tensor, str]]:
        called.append(x.shape[0])
        return {"y": (2 * layer(x) + kept[0], kept[1])}

    function = Traced(double, layer)
    with torch.no_grad():
        for n in (1, 1, 2, 1, 3, 3, 2):
            x, one = torch.randn(n, 3), torch.randn(1)
            y, name = function(x, (one, "a"))["y"]
            assert torch.equal(y, 2 * layer(x) + one)
            assert name == "a"
    # Twice for a trace: for an example of the result, and while it is traced.
    assert called == [1, 1, 2, 2, 3, 3]
    assert function(torch.ones(1, 3), (torch.ones(1), "another text"))["y"][1] == "another text"
