"""The Ray of a run: started for this run, closed to other users and ended afterwards; or an existing cluster, which is
left as it is."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from apt_bench.core.errors import RayLost, UserError, describe_error
from apt_bench.core.machine import cores, free_memory_gb
from apt_bench.core.module_search_path import RAY_PYTHONPATH, user_folders
from apt_bench.core.signals import keep_handlers
from apt_bench.core.status import status
from apt_bench.core.text import one_line, say
from apt_bench.rollout.ray_folder import reaped_folder
from apt_bench.rollout.reaper import children

WORKER_GB = 4.5
RESERVE_GB = 2.0
"""Memory per worker, and memory kept free. A LIBERO worker that renders uses up to 4 GB: it caches three scenes with
their GL contexts."""

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS"), "1"
)
"""There is one worker per core, so more threads in a worker would only compete (LP_: Mesa's software renderer)."""

START_SECONDS = 180.0
"""Time limit for the start of a process of Ray, on a loaded machine or a distant cluster."""

CHECK_SECONDS, UNHEARD_SECONDS = 1.0, 30.0
"""Interval of the checks whether Ray runs, and how long it may be unreachable."""


def auto_workers(cores: float, free_gb: float) -> int:
    """One worker per core, as far as memory permits: 4.5 GB each, with 2 GB left to the rest of the machine."""
    return max(1, _fitting(cores, free_gb))


def _fitting(cores: float, free_gb: float) -> int:
    return max(0, min(int(cores), int((free_gb - RESERVE_GB) / WORKER_GB)))


@contextmanager
def ray_session(address: str | None, workers: int | None, episodes: int, logs: bool = False) -> Iterator[int]:
    """Start a local Ray, which is ended afterwards and leaves no files, or join the cluster at `address`.

    Args:
        address: A cluster; None = a local Ray.
        workers: Number of workers; None = as many as fit.
        episodes: Number of episodes.
        logs: Show what workers print.

    Yields:
        The number of workers, at most one per episode.

    Raises:
        UserError: The cluster cannot be joined.
        RayLost: Ray does not start.
    """
    if workers is None and not address:
        workers = auto_workers(cores(), free_memory_gb())
    local, neutral = not address, _neutral()
    with ExitStack() as stack:
        folder = stack.enter_context(reaped_folder()) if local else ""
        if local:
            stack.callback(_read_again)  # once the user's own settings are restored
        stack.enter_context(_environment(_defaults() | (_private(folder) if local else {})))
        import ray

        if address:
            _check_listening(address)
        stack.enter_context(_patched(local, logs))
        quiet: dict[str, Any] = {"log_to_driver": logs, "logging_level": "CRITICAL"}
        try:
            # Ray's processes start in this folder and search it first for modules. Workers change to the user's folder.
            step = stack.enter_context(ExitStack())
            step.enter_context(status("Starting Ray"))
            with _start_watched(), keep_handlers(), contextlib.chdir(neutral):
                if local:
                    assert workers is not None
                    ray.init(
                        address="local",
                        # One more than there are workers, so that no worker waits for a core that the machine lacks.
                        num_cpus=min(workers, episodes) + 1,
                        include_dashboard=False,
                        object_store_memory=256 * 2**20,
                        _temp_dir=os.path.join(folder, "r"),  # Ray lets every user write there
                        **quiet,
                    )
                else:
                    ray.init(address=address, **quiet)
        except KeyboardInterrupt:
            _shut_down()
            raise
        except Exception as error:  # Ray raises plain Exceptions, too
            raise _not_started(address, error) from None
        stack.callback(_shut_down)
        stack.enter_context(_watched(_Supervision.of_this_session()))
        _first_process(folder)
        step.close()
        if workers is None:
            there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            workers = max(1, sum(_fitting(r.get("CPU", 0), r.get("memory", 0) / 2**30) for r in there))
        yield min(workers, episodes)


# --- start ----------------------------------------------------------------------------------------


def _defaults() -> dict[str, str | None]:
    """Settings of Ray. The user's own take precedence."""
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_raylet_start_wait_time_s": "90",  # a loaded machine needs more than Ray's 30
        "RAY_worker_niceness": "0",  # with Ray's 15, workers get no time beside other work
        **ONE_THREAD,
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _private(folder: str) -> dict[str, str | None]:
    """Settings of a Ray that no other user can reach, whatever the user's environment sets for other Rays. All of its
    processes inherit them."""
    token = os.path.join(folder, "token")
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token,
        "RAY_AUTH_TOKEN": None,  # would override the file, and be printed with the environment
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's way to open ports on the loopback interface only
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would build an environment for every process
        "RAY_RUNTIME_ENV_HOOK": None,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": None,  # of a Ray job that started apt-bench
        "RAY_ADDRESS": None,
        # A module of the user with the name of one of Ray's would stop every process of Ray.
        "PYTHONPATH": None,
        RAY_PYTHONPATH: os.environ.get("PYTHONPATH"),
    }


def _neutral() -> str:
    """A folder without the user's modules; the folder of apt-bench itself where that is not installed."""
    package = str(Path(__file__).parents[2])
    return package if package in user_folders() else "/"


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set these environment variables (None = unset), and restore them afterwards."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _patched(local: bool, logs: bool) -> Iterator[None]:
    """Set what Ray reads only when it is imported. Stop it from printing during a run and from exiting at SIGTERM."""
    import ray._private.worker as ray_worker
    from ray._private import ray_constants
    from ray._private import utils as ray_utils

    changes: list[tuple[Any, str, Any]] = [(ray_utils, "set_sigterm_handler", lambda _: None)]
    if not logs:
        changes += [(ray_worker, "print_to_stdstream", lambda *_, **__: None)]
    if local:
        changes += [(ray_constants, "ENABLE_RAY_CLUSTER", False)]
        changes += [(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", False)]
        _read_again()
    changes = [c for c in changes if hasattr(c[0], c[1])]  # internal names, which another version may lack
    before = [(where, name, getattr(where, name)) for where, name, _ in changes]
    for where, name, value in changes:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)


def _read_again() -> None:
    """Let Ray read its settings and the token from the environment again, which it otherwise reads once."""
    import ray

    inner: Any = ray._raylet
    inner.Config.initialize("")
    inner.AuthenticationTokenLoader.instance().reset_cache()


def _shut_down() -> None:
    import ray

    with status("Stopping Ray"), contextlib.suppress(Exception):  # it may be dead
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raises UserError where no server listens at host:port. Ray would try for minutes."""
    import ray

    host, _, port = address.rpartition(":")
    if not host or "//" in host or not port.isascii() or not port.isdigit():
        return  # `auto`, `ray://...`, or a mistake that Ray reports
    hosts = {host.strip("[]")}
    if hosts & {"localhost", "127.0.0.1", "::1"}:
        hosts.add(ray.util.get_node_ip_address())  # the address that Ray uses instead
    for one in hosts:
        try:
            socket.create_connection((one, int(port)), timeout=10).close()
            return
        except (OSError, OverflowError) as error:
            why = error
    raise UserError(
        f"No server listens at '{address}' ({why}). Is the Ray cluster running? `ray status` shows its address."
    )


def _not_started(address: str | None, error: Exception) -> UserError:
    from ray.exceptions import AuthenticationError

    why = one_line(describe_error(error), 500)
    if address and isinstance(error, AuthenticationError):
        return UserError(
            f"The Ray cluster at '{address}' rejects the token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the cluster's."
        )
    if address:
        return UserError(
            f"Cannot join the Ray cluster at '{address}': {why}. Is it running, does this machine belong to "
            "it, and does it use this version of Ray?"
        )
    return RayLost(f"Cannot start Ray on this machine: {why}. Use --workers 0 to run without it.")


def _first_process(folder: str) -> None:
    """Wait until Ray has started a process that can import apt-bench. Raises RayLost where it cannot."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    remote: Any = ray.remote  # typed for decorators only
    answer = remote(auto_workers).options(num_cpus=0).remote(1, 1)
    end = time.monotonic() + START_SECONDS
    while True:
        check_alive()
        try:
            ray.get(answer, timeout=CHECK_SECONDS)
            return
        except GetTimeoutError:
            if time.monotonic() > end:
                raise RayLost(
                    f"Ray started no process within {START_SECONDS:.0f} s.{_last_output(folder)} Use --workers 0 to "
                    "run without it."
                ) from None
        except RayError as error:
            check_alive()
            raise RayLost(
                f"Ray's processes cannot run apt-bench: {one_line(describe_error(error), 500)}."
            ) from None


def _last_output(folder: str) -> str:
    """What the last process that Ray started printed last, for a message."""
    logs = sorted(Path(folder or "/nowhere").glob("r/session_*/logs/*worker*.err"), key=os.path.getmtime)
    for path in reversed(logs):
        if lines := path.read_text(errors="replace").strip().splitlines():
            return f" The last process printed: {one_line(lines[-1], 300)}."
    return ""


@contextmanager
def _start_watched() -> Iterator[None]:
    """End this process where Ray's control process dies while Ray starts. Ray would wait for a minute and then end this
    process itself, without an exception. No episode has run yet. Cancel the alarm with which Ray ends this process 3
    seconds after a SIGTERM that arrives while Ray starts."""
    over = threading.Event()
    own_alarm = signal.getitimer(signal.ITIMER_REAL)[0] > 0

    def watch() -> None:
        seen: set[int] = set()
        missed = 0
        while not over.wait(CHECK_SECONDS):
            cancel_alarm()
            now = children("gcs_server")
            missed = missed + 1 if seen - now else 0  # a start that fails ends it, too, and then reports why
            seen |= now
            if missed > DEAD_CHECKS:
                say(
                    "Ray's control process (gcs_server) died while Ray started: it was killed, or the machine ran out "
                    "of memory. Recorded episodes are safe. Rerun the same command to resume."
                )
                os._exit(RayLost.exit_code)

    def cancel_alarm() -> None:
        if not own_alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)

    threading.Thread(target=watch, name="ray starts", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        cancel_alarm()


# --- supervision --------------------------------------------------------------------------------------


DEAD_CHECKS = 10
"""While Ray starts, the control process is dead after this many checks without it."""


class _Supervision:
    """Checks that the two processes that Ray cannot lose accept connections: the cluster's GCS, and this machine's
    raylet. Ray itself would wait for a minute and then end this process."""

    def __init__(self, places: Mapping[str, tuple[str, int]]) -> None:
        self._places = places
        self._heard = dict.fromkeys(places, time.monotonic())
        self._checked = time.monotonic()

    @staticmethod
    def of_this_session() -> _Supervision:
        import ray

        places: dict[str, tuple[str, int]] = {}
        with contextlib.suppress(AttributeError, ValueError):  # with `ray://` another process is the driver
            context = ray.get_runtime_context()
            host, _, port = context.gcs_address.rpartition(":")
            places["control process (gcs_server)"] = (host.strip("[]"), int(port))
            for node in ray.nodes():
                if node["NodeID"] == context.get_node_id():
                    places["node process (raylet)"] = (node["NodeManagerAddress"], node["NodeManagerPort"])
        return _Supervision(places)

    def check(self, now: bool) -> None:
        """Raises RayLost where one of them died. Checks once a second, or now."""
        if not now and time.monotonic() - self._checked < CHECK_SECONDS:
            return
        for what, place in self._places.items():
            try:
                socket.create_connection(place, timeout=CHECK_SECONDS).close()
                self._heard[what] = time.monotonic()
            except OSError as error:
                silent = time.monotonic() - self._heard[what]
                if isinstance(error, ConnectionRefusedError) or silent > UNHEARD_SECONDS:
                    raise RayLost(
                        f"Ray's {what} died: it was killed, or the machine ran out of memory"
                    ) from None
        self._checked = time.monotonic()


_supervision: _Supervision | None = None  # one per process, as Ray has one session


@contextmanager
def _watched(supervision: _Supervision) -> Iterator[None]:
    global _supervision
    _supervision = supervision
    try:
        yield
    finally:
        _supervision = None


def check_alive(now: bool = False) -> None:
    """Raises RayLost where the Ray of this session died. Checks once a second, or `now`."""
    if _supervision is not None:
        _supervision.check(now)
