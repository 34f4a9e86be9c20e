"""The worker process of `apt-bench play`, as its server sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from types import TracebackType
from typing import Any

from apt_bench.rollout.cluster import ONE_THREAD

_CODE = "import sys; sys.path[:] = {path!r}; from apt_bench.serving.play_worker import main; main({handle})"


class Lost(Exception):
    """The worker process ended, or must be ended. The message is a sentence about it."""


class WorkerProcess:
    """A process of `play_worker.main` and the connection to it. Use it in a `with` block, which ends the process.

    Args:
        policy: What the process gets first.
    """

    def __init__(self, policy: Any) -> None:
        self._connection, theirs = Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE.format(path=sys.path, handle=theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a policy prints appears with the messages
                pass_fds=[theirs.fileno()],
                env={**ONE_THREAD, **os.environ},
                start_new_session=True,  # Ctrl-C reaches the server only
            )
        finally:
            theirs.close()
        self.send(policy)

    def send(self, message: Any) -> None:
        """Send an object. Raises Lost."""
        try:
            self._connection.send(message)
        except OSError:
            raise Lost(self._death()) from None

    def receive(self, seconds: float) -> bytes | None:
        """The next message, or None if there is none within this time. Raises Lost."""
        try:
            return self._connection.recv_bytes() if self._connection.poll(seconds) else None
        except (EOFError, OSError):
            raise Lost(self._death()) from None

    def _death(self) -> str:
        """How the process ended, whose connection is closed."""
        try:
            code = self._process.wait(2)
        except subprocess.TimeoutExpired:
            return "The worker process closed its connection."
        if code >= 0:
            return f"The worker process ended with exit code {code}."
        reason = " The system does so when memory runs out." if code == -signal.SIGKILL else ""
        return f"The worker process was ended by signal {-code} ({signal.strsignal(-code)}).{reason}"

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
