"""`apt-bench play`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from urllib.request import Request, urlopen

import pytest

from tests.chromium import LONG
from tests.serving.play_reader import children


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(number: signal.Signals) -> None:
    policy = "tests.serving.play_policy:ObedientPolicy"
    command = [sys.executable, "-m", "apt_bench", "play", "--policy", policy, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        try:
            assert it.stdout
            address = re.fullmatch(r"Play: (http://127\.0\.0\.1:\d+)/\n", it.stdout.readline())
            assert address, it.stderr and it.stderr.read()
            assert "Ctrl-C" in it.stdout.readline()
            with urlopen(address[1], timeout=LONG) as page:  # although the policy is not loaded yet
                assert b'<script src="play.js">' in page.read()
                assert "connect-src 'self'" in page.headers["Content-Security-Policy"]
            with urlopen(f"{address[1]}/events/0/0/0", timeout=LONG) as state:
                assert json.load(state)["phase"] in ("loading", "ready")
            headers = {"Content-Type": "application/json"}
            with urlopen(Request(f"{address[1]}/stop", b"{}", headers), timeout=LONG) as answer:
                assert json.load(answer) == {}
            give_up = time.monotonic() + LONG
            while not (worker := children(it.pid)) and time.monotonic() < give_up:
                time.sleep(0.05)
            it.send_signal(number)
            _, error = it.communicate(timeout=LONG)
        finally:
            it.kill()
    assert (it.returncode, error) == (0, "")
    assert len(worker) == 1
    assert children(1) == []


def test_a_policy_that_cannot_be_loaded_is_named(cli) -> None:
    assert "No policy 'none'" in cli("play", "--policy", "none", "--port", "0")
    policy = "tests.serving.play_policy:UnloadablePolicy"
    assert "No file 'weights.pt'." in cli("play", "--policy", policy, "--port", "0")
