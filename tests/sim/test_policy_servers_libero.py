"""An episode of LIBERO-PRO through each protocol's server, see `tests/policies/remote/episodes.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apt_bench.envs.libero import LiberoEnv
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

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def expert() -> Iterator[Expert]:
    env = LiberoEnv()
    yield expert_of(env, load_suite("libero_pro").select(["object_task"], ["0"], 2))
    env.close()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "vla-eval" else n for n in EXECUTED]
)  # vla-eval asks for an image at each step
def test_an_episode_of_libero_pro_succeeds(name: str, expert: Expert) -> None:
    fake, server = server_for(expert, name)
    if name == "vla-eval":  # the server keeps chunks of 4, and its model sees every fourth frame
        server.step, server.expected = fake.steps, expert.observations(fake.steps)
    assert run(expert, name, fake, server) == "success"
    assert server.wrong == ""


@pytest.mark.parametrize("how", ["no JPEG"])
def test_with_openvlas_preprocessing_wrong_it_fails(
    how: str, expert: Expert, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with_openvlas_image(OPENVLA_WRONG[how], expert, monkeypatch)


def test_with_the_old_sentence_it_fails(expert: Expert) -> None:
    fake, server = server_for(expert, "openpi")
    server.prompt = expert.spec.prompts["file"]
    assert server.prompt != expert.spec.prompt
    assert run(expert, "openpi", fake, server) != "success"
    assert server.wrong == "prompt"
