"""An episode of LIBERO-PRO through the server has the actions of the same episode in process."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apt_bench.policies.registry import find_policy
from apt_bench.policies.remote.vla_eval import VlaEvalPolicy
from apt_bench.rollout.episode import LocalClient, run_episode
from apt_bench.suites import load_suite
from tests.serving.helpers import serving


@pytest.mark.sim
def test_apt_through_vla_eval_acts_as_in_process():
    from apt_bench.envs.libero.env import LiberoEnv

    (spec,) = load_suite("libero_pro").select(["long_task"], ["2"], 2)[1:]
    spec = dataclasses.replace(spec, max_steps=12)
    policy = find_policy("apt_mini").load()
    env = LiberoEnv()
    try:
        wanted = run_episode(env, LocalClient(policy), spec, policy.spec, execute=policy.spec.execute)
        with serving(policy, "vla-eval") as address:
            remote = VlaEvalPolicy(address)
            found = run_episode(env, LocalClient(remote), spec, remote.spec, execute=1)
            remote.close()
    finally:
        env.close()
    assert found.record.error is None
    assert found.record.start_hash == wanted.record.start_hash
    assert np.abs(wanted.actions).max() > 0.01
    np.testing.assert_allclose(found.actions, wanted.actions, atol=2e-3)
    np.testing.assert_allclose(found.actions[:8], wanted.actions[:8], atol=1e-4)
