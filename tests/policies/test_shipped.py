"""`--policy apt` without a checkpoint: the network that ships for the scene, or an error with the ways on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apt_bench.core.errors import UserError
from apt_bench.envs.base import Camera, Observation
from apt_bench.policies.apt import AptPolicy
from apt_bench.policies.registry import find_policy
from apt_bench.policies.shipped import NETWORKS, ShippedPolicy, scene_of
from apt_bench.suites import EpisodeSpec, load_suite


def episode(suite: str, cell: str) -> EpisodeSpec:
    return load_suite(suite).select([cell], episodes=1)[0]


def observation(spec: EpisodeSpec, seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    pose = np.array([[1, 0, 0, 0.5], [0, -1, 0, 0], [0, 0, -1, 1.6], [0, 0, 0, 1]], float)
    K = np.array([[300, 0, 127.5], [0, 300, 127.5], [0, 0, 1]], float)
    return Observation(
        images={n: rng.integers(0, 255, (256, 256, 3), np.uint8) for n in ("agentview", "wrist")},
        state=np.array([0, 0, 1.2, 3.1, 0, 0, 0.04, -0.04], np.float32),
        instruction=spec.prompt,
        episode=spec.id,
        noise_key=spec.noise_key,
        cameras={n: Camera(K, pose) for n in ("agentview", "wrist")},
    )


def test_a_tabletop_episode_gets_the_tabletops_network() -> None:
    ref = find_policy("apt")
    policy = ref.load()
    assert policy.spec.name == "apt"
    assert policy.spec.provenance.weights_sha256 == ref.digest() == ShippedPolicy.digest()
    assert "M parameters" in policy.spec.provenance.about["shipped"]
    spec = episode("rigid_pick_place", "so")
    policy.reset([spec])
    own = AptPolicy("mini", execute=8, sample_steps=10)
    np.testing.assert_array_equal(policy.act([observation(spec)])[0], own.act([observation(spec)])[0])


def test_a_checkpoint_is_still_a_checkpoint() -> None:
    assert find_policy("apt", file="mini").policy.endswith(":AptPolicy")
    assert find_policy("apt", ["weights=mini"]).policy.endswith(":AptPolicy")


def test_a_scene_without_a_network_is_an_error_that_names_the_ways_on() -> None:
    policy = find_policy("apt").load()
    mine = dataclasses.replace(episode("libero_pro", "long_pos"), env="mine:Env", args={})
    with pytest.raises(UserError, match=r"no network ships for mine:Env .*--cells.*--checkpoint.*train one"):
        policy.reset([mine])


def test_a_libero_scene_is_the_benchmark_that_the_task_was_made_from() -> None:
    spec = episode("libero_pro", "object_task")
    assert scene_of(spec.env, spec.args) == "libero_object"
    wrapped = dataclasses.replace(spec, env="x:Around", args={"env": spec.env, "args": dict(spec.args)})
    assert scene_of(wrapped.env, wrapped.args) == "libero_object"
    assert scene_of("mine:Env", {}) == "mine:Env"


def test_every_network_that_is_named_ships() -> None:
    for name in NETWORKS.values():
        spec = AptPolicy(name, execute=8, sample_steps=10).spec
        assert spec.cameras == ("agentview", "wrist")
        assert spec.horizon >= 8
