"""Episodes of the tabletop simulator through each protocol's server, see `episodes.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.envs.tabletop import TabletopEnv
from apt_bench.suites import load_suite
from tests.policies.remote.episodes import (
    EXECUTED,
    OPENVLA_WRONG,
    Expert,
    expert_of,
    fails_with_openvlas_image,
    run,
    server_for,
)
from tests.policies.remote.kinds import KINDS

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def expert() -> Iterator[Expert]:
    env = TabletopEnv()
    yield expert_of(env, load_suite("rigid_pick_place").select(["so"], [], 3))
    env.close()


@pytest.mark.parametrize("name", EXECUTED)
def test_an_episode_through_the_server_succeeds(name: str, expert: Expert) -> None:
    fake, server = server_for(expert, name)
    if name == "vla-eval":
        fake.steps = 1  # the stand-in looks at every observation
    assert run(expert, name, fake, server) == "success"
    assert server.wrong == ""


def images(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Observation], Observation]:
    return lambda o: dataclasses.replace(o, images={name: change(image) for name, image in o.images.items()})


BROKEN: dict[str, tuple[str, Callable[[Observation], Observation]]] = {
    "upside down": ("agentview", images(lambda image: image[::-1].copy())),
    "mirrored": ("agentview", images(lambda image: image[:, ::-1].copy())),
    "blue for red": ("agentview", images(lambda image: image[..., ::-1].copy())),
    "wrong wrist": (
        "wrist",
        lambda o: dataclasses.replace(o, images={**o.images, WRIST: o.images[AGENTVIEW]}),
    ),
    "old prompt": ("prompt", lambda o: dataclasses.replace(o, instruction="pick up the black bowl")),
    "sign of the rotation": (
        "state",
        lambda o: dataclasses.replace(o, state=o.state * [1, 1, 1, -1, -1, -1, 1, 1]),
    ),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", ["openpi", "vla-eval"])
def test_with_one_convention_broken_it_fails(
    name: str, how: str, expert: Expert, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, change = BROKEN[how]
    kind = KINDS[name].client
    right = kind._infer
    monkeypatch.setattr(kind, "_infer", lambda self, observation: right(self, change(observation)))
    fake, server = server_for(expert, name)
    if name == "vla-eval":
        fake.steps = 1
    assert run(expert, name, fake, server) != "success"
    assert (server.wrong, server.number >= 1) == (what, True)


@pytest.mark.parametrize("how", OPENVLA_WRONG)
def test_with_openvlas_preprocessing_wrong_it_fails(
    how: str, expert: Expert, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with_openvlas_image(OPENVLA_WRONG[how], expert, monkeypatch)


@pytest.mark.parametrize("name", ["openpi", "vla-eval", "groot", "openvla"])
def test_with_the_gripper_of_another_convention_it_fails(name: str, expert: Expert) -> None:
    fake, server = server_for(expert, name)
    if name == "vla-eval":
        fake.steps = 1
    fake.gripper = lambda g: (
        1 - KINDS[name].server.gripper(g) if name in ("groot", "openvla") else np.where(g < 0, 1.0, 0.01)
    )  # type: ignore[method-assign, assignment]
    assert run(expert, name, fake, server) != "success"


def test_with_another_number_of_executed_actions_it_fails(expert: Expert) -> None:
    fake, server = server_for(expert, "openpi")
    server.step = 10  # the server believes that all of its chunk is executed
    server.expected = expert.observations(10)
    assert run(expert, "openpi", fake, server) != "success"
