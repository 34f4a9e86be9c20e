"""apt-bench handles Ctrl-C and SIGTERM itself, also while and after Ray starts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from apt_bench.core.signals import interrupt_on_signals, keep_handlers

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


SLOW_END = """
import os
import signal
import time
import ray
from apt_bench.core.signals import interrupt_on_signals
from apt_bench.rollout.cluster import ray_session

init = ray.init

def interrupted_init(*args, **kwargs):
    init(*args, **kwargs)  # leaves Ray's own handler of SIGTERM
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)

ray.init = interrupted_init
try:
    with interrupt_on_signals(), ray_session(None, 1, 1):
        pass
except KeyboardInterrupt:
    time.sleep(4)  # Ray's handler ends the process after 3 seconds
    print("interrupted")
"""


def test_a_process_that_ends_slowly_after_sigterm_is_not_aborted():
    done = subprocess.run([sys.executable, "-c", SLOW_END], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
    assert "SIGTERM received" in done.stderr


class Noisy:
    """An exception in `__del__` is only printed."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_only_prints_is_raised_at_the_end_of_the_block():
    done = []
    with interrupt_on_signals():
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), keep_handlers():  # noqa: PT012
            Noisy()
            done.append("after the signal")
        assert signal.getsignal(signal.SIGTERM) is handler
    assert done == ["after the signal"]
