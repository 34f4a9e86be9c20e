"""The command `apt-bench serve`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from apt_bench.policies.remote.openpi import OpenPiPolicy
from apt_bench.policies.remote.vla_eval import VlaEvalPolicy
from tests.serving.helpers import episode, observation


@contextmanager
def command(*words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "apt_bench", "serve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def failed(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "apt_bench", "serve", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done
    assert not done.stdout
    return done.stderr


@pytest.mark.parametrize(
    ("protocol", "kind", "number"),
    [("openpi", OpenPiPolicy, signal.SIGINT), ("vla-eval", VlaEvalPolicy, signal.SIGTERM)],
)
def test_it_serves_until_it_is_stopped(protocol, kind, number):
    with command("--policy", "random", "--policy-arg", "seed=3", "--protocol", protocol, "--port", "0") as it:
        first = it.stdout.readline()
        found = re.fullmatch(rf"Serving policy 'random' \({protocol}\) at (ws://127\.0\.0\.1:\d+)\n", first)
        remote = kind(found[1], horizon=10)
        remote.reset([episode()])
        (chunk,) = remote.act([observation()])
        assert chunk.shape == ((10, 7) if protocol == "openpi" else (1, 7))
        assert np.abs(chunk).max() > 0.5
        it.send_signal(number)
        out, err = it.communicate(timeout=30)
        assert (it.returncode, out, err) == (0, "", "")


def test_a_warning_where_everyone_can_connect():
    with command("--policy", "zero", "--protocol", "openpi", "--port", "0", "--host", "0.0.0.0") as it:
        assert "ws://0.0.0.0:" in it.stdout.readline()
        it.send_signal(signal.SIGTERM)
        _, err = it.communicate(timeout=30)
        assert it.returncode == 0
        assert "every network interface" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy", "zero", "--protocol", "grpc"], "grpc"),
        (["--policy", "zero"], "--protocol"),
        (["--policy", "zeero", "--protocol", "openpi"], "Did you mean 'zero'?"),
        (["--policy", "oracle", "--protocol", "openpi"], "reads the simulator's state"),
        (["--policy", "pi05", "--protocol", "vla-eval"], "server of its own"),
        (["--policy", "zero", "--protocol", "openpi", "--suite", "nowhere"], "No suite 'nowhere'"),
        (
            ["--policy", "zero", "--protocol", "openpi", "--host", "256.1.2.3"],
            "Choose another --port or --host",
        ),
        (["--policy", "zero", "--protocol", "openpi", "--port", "99999"], "--port"),
    ],
)
def test_bad_input_is_the_users_error(words, message):
    assert message in failed(*words)
