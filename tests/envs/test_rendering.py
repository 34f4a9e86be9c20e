"""Choosing the GL backend."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from apt_bench.core.errors import UserError
from apt_bench.envs import rendering


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch):
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # monkeypatch restores it afterwards
    rendering.choose_backend.cache_clear()
    yield
    rendering.choose_backend.cache_clear()


def test_the_environment_variable_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert rendering.choose_backend() == "osmesa"


def test_an_unknown_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
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


REAL_USE = """
from apt_bench.envs import rendering
from apt_bench.envs.gl_context import Canvas
print(rendering.describe().name)
Canvas(64, 64)
"""


@pytest.mark.sim
@pytest.mark.parametrize("wanted", ["", "egl"])
@pytest.mark.parametrize("platform", ["glx", "osmesa", "EGL", "x"])
def test_the_platform_of_pyopengl_follows_the_choice_in_the_probe_and_in_use(
    wanted: str, platform: str
) -> None:
    environ = {**os.environ, "PYOPENGL_PLATFORM": platform, "MUJOCO_GL": wanted}
    done = subprocess.run(
        [sys.executable, "-c", REAL_USE], env=environ, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "egl\n"), done.stderr
    said = f"PYOPENGL_PLATFORM={platform} contradicts MUJOCO_GL=egl; egl is used."
    assert (said in done.stderr) == (platform != "EGL")


@pytest.mark.sim
def test_a_platform_that_pyopengl_was_imported_for_cannot_be_changed() -> None:
    script = "import OpenGL.GL\n" + REAL_USE
    environ = {**os.environ, "PYOPENGL_PLATFORM": "osmesa", "MUJOCO_GL": "egl"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=100
    )
    assert "PyOpenGL was already imported for 'osmesa'" in done.stderr


@pytest.mark.sim
def test_software_rendering_instead_of_a_gpu_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(
        rendering, "probe", lambda name: "no device" if name == "egl" else rendering.Backend(name, "", "", "")
    )
    assert rendering.choose_backend() == "osmesa"
    assert "egl: no device. Images are rendered with osmesa instead" in capsys.readouterr().err


def test_an_exception_without_text_is_named_by_its_type() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert rendering.why(Mute()) == "Mute"
