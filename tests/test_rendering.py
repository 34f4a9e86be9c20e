"""Choosing the GL backend."""

from __future__ import annotations

import pytest

from apt_bench import rendering
from apt_bench.core.errors import UserError


@pytest.fixture(autouse=True)
def forget():
    rendering.choose_backend.cache_clear()
    yield
    rendering.choose_backend.cache_clear()


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert rendering.choose_backend() == "osmesa"


def test_nonsense_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(UserError, match=r"vulkan.*egl"):
        rendering.choose_backend()


def test_without_any_library_the_message_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "CANDIDATES", ("nosuchbackend",))
    with pytest.raises(UserError, match=r"libegl1 libgl1-mesa-dri.*libosmesa6"):
        rendering.choose_backend()


def test_a_broken_choice_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "cgl")  # macOS only
    with pytest.raises(UserError, match="cgl does not work"):
        rendering.describe()


@pytest.mark.sim
def test_this_machine_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    backend = rendering.describe()
    assert backend.name in rendering.CANDIDATES
    assert backend.renderer
    assert backend.version
