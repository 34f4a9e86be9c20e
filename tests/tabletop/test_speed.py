"""The tabletop stays fast. The bounds are three times the measured times (docs/tabletop.md)."""

import time

import numpy as np
import pytest

from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.suites import load_suite

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def env():
    env = TabletopEnv()
    env.reset(load_suite("rigid_pick_place").select(["so"], episodes=1)[0])
    env.frame()
    yield env
    env.close()


def milliseconds(work, times=15):
    """Return the median CPU time, on which other processes have little influence."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        work()
        taken.append(1000 * (time.process_time() - began))
    return np.median(taken)


def test_scenes_are_low_polygon(env):
    assert env.model.nmeshface < 6000


def test_images_are_cheap(env):
    assert milliseconds(lambda: env.frame(size=128)) < 20


def test_control_steps_are_cheap(env):
    action = np.array([[0, 0, 0, 0, 0, 0, -1.0]])
    assert milliseconds(lambda: env.step_chunk(action, render=False)) < 6
