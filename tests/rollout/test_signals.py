"""What Ctrl-C and SIGTERM do is apt-bench's choice, also while and after Ray starts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import signal
from apt_bench.core.signals import interrupt_on_signals
from apt_bench.rollout.cluster import ray_session

with interrupt_on_signals():
    before = signal.getsignal(signal.SIGTERM)
    with ray_session(None, 1, 1):
        assert signal.getsignal(signal.SIGTERM) is before
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            print("interrupted")
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""


def test_ray_does_not_change_what_signals_do():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


START = """
from apt_bench.core.signals import interrupt_on_signals
from apt_bench.rollout.cluster import ray_session
import ray

print("starting", flush=True)
try:
    with interrupt_on_signals(), ray_session(None, 1, 1):
        print("started", flush=True)
        import time
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("seconds", [0.3, 1.5, 2.5])
def test_sigterm_while_ray_starts_is_an_interrupt(seconds):
    process = subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "starting\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert out.splitlines()[-1] == "interrupted"
