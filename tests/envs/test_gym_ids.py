"""Every registered Gymnasium id: Gymnasium's own checks, determinism, pickling."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from apt_bench.envs.gym import IDS, SuiteEnv
from apt_bench.suites import iter_suites
from apt_bench.suites.suite import ENVIRONMENTS


def _of(env: str) -> list[str]:
    suites = [s.name for s in iter_suites() if s.env == ENVIRONMENTS[env]]
    return [i for s in suites for i in IDS if i.startswith(f"apt_bench/{s}-")]


def _marks(name: str) -> list[pytest.MarkDecorator]:
    first = [f"apt_bench/{s.name}-{s.cells[0].name}-v{s.version}" for s in iter_suites()]
    return [pytest.mark.sim, *([] if name in first else [pytest.mark.slow])]


EVERY = [
    *map(pytest.param, _of("tabletop")),
    *(pytest.param(i, marks=_marks(i)) for i in _of("libero")),
]
"""LIBERO's scenes take 5 to 10 s each. The first cell of each suite runs in CI, the others in the slow tier."""


def made(name: str, cameras: tuple[str, ...] = ()) -> Any:
    return gymnasium.make(name, cameras=cameras, disable_env_checker=True)


def played(env: Any) -> list[Any]:
    """Return the observations and rewards of three steps."""
    first, info = env.reset(seed=3)
    env.action_space.seed(3)
    found = [info["episode"], first]
    for _ in range(3):
        found += env.step(env.action_space.sample())[:3]
    return found


def assert_same(a: list[Any], b: list[Any]) -> None:
    for one, other in zip(a, b, strict=True):
        if isinstance(one, dict):
            assert one.keys() == other.keys()
            for key in one:
                np.testing.assert_array_equal(one[key], other[key])
        else:
            assert one == other


def test_every_id_is_checked() -> None:
    assert sorted(p.values[0] for p in EVERY) == sorted(IDS)


@pytest.mark.parametrize("name", EVERY)
def test_gymnasium_accepts_the_id(name: str) -> None:
    env = made(name)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("name", EVERY)
def test_the_same_seed_gives_the_same_episode_and_so_does_a_pickled_copy(name: str) -> None:
    env = made(name)
    first = played(env)
    assert_same(first, played(env))
    copy = pickle.loads(pickle.dumps(env))
    env.close()
    assert_same(first, played(copy))
    copy.close()


def test_a_pickled_copy_has_the_same_cameras() -> None:
    env = SuiteEnv("rigid_pick_place", "so", cameras=("wrist",), render_mode="rgb_array")
    copy = pickle.loads(pickle.dumps(env))
    assert (copy.cameras, copy.render_mode, copy.cell) == (env.cameras, env.render_mode, env.cell)
    assert copy.observation_space == env.observation_space


def test_a_late_initial_state_computes_no_other_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentences of other initial states need their scenes and are not computed."""
    env = made("apt_bench/clutter_pick_place-train-v1").unwrapped
    drawn: list[int] = []
    for task in env.tasks:
        assert task.prompts_of is not None
    kind = type(env.tasks[0])
    real = kind.__getattribute__

    def seen(self: Any, name: str) -> Any:
        value = real(self, name)
        return (lambda init, seed: drawn.append(init) or value(init, seed)) if name == "prompts_of" else value

    monkeypatch.setattr(kind, "__getattribute__", seen)
    env.reset(seed=0, options={"task": 0, "init": 900})
    assert drawn == [0, 900]


def test_an_id_needs_no_import_of_apt_bench() -> None:
    code = """
import gymnasium
env = gymnasium.make("apt_bench.envs.gym:apt_bench/rigid_pick_place-so-v1", cameras=())
print(env.reset(seed=0, options={"task": 0, "init": 2})[1]["episode"])
"""
    found = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True)
    assert "/init2/" in found
