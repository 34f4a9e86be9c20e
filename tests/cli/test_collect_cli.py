from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from apt_bench.cli import collect, replay
from apt_bench.core.errors import UserError
from apt_bench.demos.hdf5_writer import write_hdf5
from apt_bench.demos.video import read_mp4
from tests.demos.samples import sample

app = typer.Typer()
for verb in (collect, replay):
    verb.register(app)
TOY = [
    "--suite",
    "tests/toy_suite.yaml",
    "--cells",
    "push",
    "--policy",
    "tests.toy:PushPolicy",
    "--workers",
    "0",
]


def test_collect_then_replay_with_a_video(tmp_path: Path) -> None:
    out, video = str(tmp_path / "d"), tmp_path / "v.mp4"
    done = CliRunner().invoke(
        app, ["collect", *TOY, "--limit", "3", "--out", out, "--cameras", "agentview", "--size", "64"]
    )
    assert done.exit_code == 0, done.output
    assert "3 demonstrations" in done.output
    done = CliRunner().invoke(app, ["replay", out, "--suite", "tests/toy_suite.yaml"])
    assert (done.exit_code, "3/3 reproduced" in done.output) == (0, True), done.output
    words = ["replay", out, "--suite", "tests/toy_suite.yaml", "--index", "2", "--video", str(video)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "same start, same final state" in done.output
    assert read_mp4(video, 0, 5, (64, 64)).shape == (5, 64, 64, 3)


def test_a_demonstration_that_does_not_reproduce_is_told(tmp_path: Path) -> None:
    """A demonstration of an existing episode, with invented actions and hashes."""
    from dataclasses import replace

    demo = sample()
    assert demo.info.key is not None
    key = replace(demo.info.key, suite="toy", cell="push", task="push_the_puck_left")
    write_hdf5(tmp_path / "x.hdf5", [replace(demo, info=replace(demo.info, key=key))])
    done = CliRunner().invoke(app, ["replay", str(tmp_path / "x.hdf5"), "--suite", "tests/toy_suite.yaml"])
    assert done.exit_code == 1
    assert "ANOTHER start" in done.output
    assert "0/1 reproduced" in done.output


def test_bad_words_are_named() -> None:
    with pytest.raises(UserError, match="Did you mean 'lerobot'"):
        CliRunner().invoke(app, ["collect", *TOY, "--out", "x", "--format", "lerobo"], catch_exceptions=False)
