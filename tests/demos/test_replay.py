"""A demonstration may name a shipped suite and nothing else: suites name modules that are imported."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apt_bench.demos.hdf5_writer import write_hdf5
from tests.demos.samples import sample

EVIL = """
name: evil
version: 1
title: Evil
env: evil_{n}:Env
tasks: evil_{n}:tasks
episodes: 1
settle_steps: 0
seed: 7
cells:
  goal: {{label: Goal, max_steps: 10, instruction: file}}
"""


@pytest.mark.parametrize("n", range(4))
def test_a_file_cannot_choose_what_is_imported(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., str]
) -> None:
    (tmp_path / "evil.yaml").write_text(EVIL.format(n=n))
    (tmp_path / f"evil_{n}.py").write_text("import pathlib; pathlib.Path('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = ("evil.yaml", str(tmp_path / "evil.yaml"), "evil", f"../../../../../../../../{tmp_path}/evil")[n]
    demo = sample(steps=4, size=16)
    assert demo.info.key is not None
    info = dataclasses.replace(
        demo.info, key=dataclasses.replace(demo.info.key, suite=name), scene={"env": f"evil_{n}:Env"}
    )
    write_hdf5(tmp_path / "x.hdf5", [dataclasses.replace(demo, info=info)])
    assert "is not shipped. Give its file with --suite" in cli("replay", "x.hdf5")
    assert not (tmp_path / "ran").exists()
    cli("replay", "x.hdf5", "--suite", "evil.yaml")  # the user's own word: refused for what is in it
    assert (tmp_path / "ran").exists()


def test_versions_that_a_file_claims_are_looked_up_for_the_simulator_alone(
    tmp_path: Path, cli: Callable[..., str]
) -> None:
    demo = sample(steps=4, size=64)
    assert demo.info.key is not None
    key = dataclasses.replace(demo.info.key, suite="toy", cell="push", task="push_the_puck_left")
    for said in ({"": "1", "../x": "2", "mujoco": "0.1\x1b[31m"}, ["mujoco"], 3, {"mujoco": {"a": 1}}):
        info = dataclasses.replace(demo.info, key=key, scene={"simulator": said})
        write_hdf5(tmp_path / "x.hdf5", [dataclasses.replace(demo, info=info)])
        out = cli("replay", tmp_path / "x.hdf5", "--suite", "tests/toy_suite.yaml", code=1)
        assert "0/1 reproduced" in out
        assert "\x1b" not in out
        assert ("Made with {'mujoco': '0.1" in out) == (
            said == {"": "1", "../x": "2", "mujoco": "0.1\x1b[31m"}
        )


@pytest.mark.parametrize(
    ("option", "value"), [("--limit", 0), ("--limit", -1), ("--index", 9), ("--index", -2)]
)
def test_numbers_that_cannot_be_meant_are_refused(
    tmp_path: Path, cli: Callable[..., str], option: str, value: int
) -> None:
    write_hdf5(tmp_path / "x.hdf5", [sample(steps=4, size=16)])
    assert str(value) in cli("replay", tmp_path / "x.hdf5", option, value)


def test_a_film_that_cannot_be_written_is_named(tmp_path: Path, cli: Callable[..., str]) -> None:
    demo = sample(steps=4, size=64)
    assert demo.info.key is not None
    key = dataclasses.replace(demo.info.key, suite="toy", cell="push", task="push_the_puck_left")
    write_hdf5(tmp_path / "x.hdf5", [dataclasses.replace(demo, info=dataclasses.replace(demo.info, key=key))])
    (tmp_path / "no").touch()
    words = ("replay", tmp_path / "x.hdf5", "--suite", "tests/toy_suite.yaml", "--video")
    assert "Cannot write" in cli(*words, tmp_path / "no/x.mp4")
    (tmp_path / "-y.mp4").mkdir()
    assert "Cannot write" in cli(*words, tmp_path / "-y.mp4")
    (tmp_path / "old.mp4").write_bytes(b"an older film")
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
    code = f"{limit}sys.argv = ['apt-bench', *sys.argv[1:]]\nfrom apt_bench.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words), tmp_path / "old.mp4"], capture_output=True, text=True
    )
    assert (done.returncode, "Cannot write" in done.stderr) == (2, True), done.stderr
    assert (tmp_path / "old.mp4").read_bytes() == b"an older film"
    assert not list(tmp_path.glob("*.part*"))
