"""`apt-bench doctor` renders an image and reports what is wrong in plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apt_bench.cli import doctor
from apt_bench.envs import rendering

SUITE = str(Path(__file__).parents[1] / "toy_suite.yaml")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No backend is chosen yet, one backend is available, and Ray is not started."""
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID"):
        monkeypatch.setenv(name, "")  # and restored afterwards, whatever is chosen
        monkeypatch.delenv(name)
    monkeypatch.setattr(rendering, "CANDIDATES", ("egl",))
    monkeypatch.setattr(doctor, "_ray", lambda: "not tried")
    for cached in (rendering.choose_backend, rendering.probe):
        cached.cache_clear()
    yield
    for cached in (rendering.choose_backend, rendering.probe):
        cached.cache_clear()


@pytest.mark.sim
def test_a_picture_is_drawn_and_timed(cli: Callable[..., str]) -> None:
    assert "rendering: egl, " in (out := cli("doctor", "--suite", SUITE, code=0))
    assert ": an image in " in out


@pytest.mark.sim
def test_a_picture_that_shows_nothing_is_a_failure(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rendering, "_PICTURE", rendering._PICTURE.replace('type="sphere"', 'type="sphere" group="5"')
    )
    assert "a red ball rendered in it is missing from the image" in cli("doctor", "--suite", SUITE, code=1)


def test_a_library_that_hangs_is_a_failure(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_PROBE", "import time; time.sleep(100)")
    monkeypatch.setattr(rendering, "PROBE_SECONDS", 0.3)
    assert "FAIL  rendering: No GL library" in (out := cli("doctor", "--suite", SUITE, code=1))
    assert "egl: no image within 0.3 s" in out
    assert "ok    disk" in out  # the other checks go on


def test_a_library_that_crashes_is_a_failure(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_PROBE", "import os; os.abort()")
    assert "egl: its process was killed by signal 6" in cli("doctor", "--suite", SUITE, code=1)


@pytest.mark.parametrize("device", ["[/dev/dri/renderD128]", "[red]x", "\x1b[31m", "99", "-1"])
def test_what_a_library_says_is_only_text(cli, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", device)
    out = cli("doctor", "--suite", SUITE, code=1)
    assert "FAIL  rendering" in out
    assert "\x1b" not in out
    assert device.replace("\x1b", "") in out.replace("\\x1b", "")


def test_a_check_that_raises_anything_does_not_hide_the_others(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise OSError(5, "Input/output error [/dev/sda]")

    monkeypatch.setattr(doctor, "_memory", broken)
    out = cli("doctor", "--suite", SUITE, code=1)
    assert "FAIL  memory: OSError: [Errno 5] Input/output error [/dev/sda]" in out
    assert "ok    disk" in out
