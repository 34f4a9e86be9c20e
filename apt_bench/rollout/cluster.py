"""The Ray of a run: started for it alone, closed to everybody else, gone afterwards; or a cluster that is there, and
stays as it is."""

from __future__ import annotations

import contextlib
import os
import secrets
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
from apt_bench.core.signals import handlers_kept
from apt_bench.core.text import one_line, say
from apt_bench.rollout.ray_folder import reaped_folder
from apt_bench.rollout.reaper import children

WORKER_GB = 4.5
RESERVE_GB = 2.0
"""A LIBERO worker that renders holds up to 4 GB: the three compiled scenes it caches, with their GL contexts."""

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS"), "1"
)
"""One worker per core: threads inside a worker would only fight (LP_: Mesa's software renderer)."""

START_SECONDS = 180.0
"""What a process of Ray may take to come up, on a loaded machine or a far cluster."""

LOOK_SECONDS, UNHEARD_SECONDS = 1.0, 30.0
"""Between two looks whether Ray is there; for how long it may be out of reach."""


def auto_workers(cores: float, free_gb: float) -> int:
    """One worker per core, as far as memory goes: 4.5 GB each, 2 GB left to the rest of the machine."""
    return max(1, min(int(cores), int((free_gb - RESERVE_GB) / WORKER_GB)))


@contextmanager
def ray_session(address: str | None, asked: int | None, episodes: int, logs: bool = False) -> Iterator[int]:
    """A quiet local Ray, gone afterwards with its files; or the cluster at `address`, which stays.

    asked: workers, None = as many as fit. logs: show what workers print. Yields their number, at most one per episode.
    Raises UserError for a cluster that cannot be joined, RayLost for a Ray that does not start.
    """
    if asked is None and not address:
        asked = auto_workers(cores(), free_memory_gb())
    local, neutral = not address, _neutral()
    with ExitStack() as stack:
        folder = stack.enter_context(reaped_folder()) if local else ""
        if local:
            stack.callback(_read_again)  # the user's own settings, when they are back
        stack.enter_context(_environment(_defaults() | (_private(folder) if local else {})))
        import ray

        if address:
            _knock(address)
        stack.enter_context(_patched(local, logs))
        quiet: dict[str, Any] = {"log_to_driver": logs, "logging_level": "CRITICAL"}
        try:
            # Ray's processes start here, and look for modules here first. Ours move to the user's folder themselves.
            with handlers_kept(), contextlib.chdir(neutral), _start_watched():
                if local:
                    assert asked is not None
                    ray.init(
                        address="local",
                        # One more than there are workers: never wait for a core that the machine does not have.
                        num_cpus=min(asked, episodes) + 1,
                        include_dashboard=False,
                        object_store_memory=256 * 2**20,
                        _temp_dir=os.path.join(folder, "r"),  # Ray lets everybody write there
                        **quiet,
                    )
                else:
                    ray.init(address=address, **quiet)
        except SystemExit:  # Ray's own answer to SIGTERM, while it starts
            raise KeyboardInterrupt from None
        except Exception as error:  # Ray raises bare ones, too
            raise _not_started(address, error) from None
        stack.callback(_shut_down)
        stack.enter_context(_watched(_Pulse.of_this_session()))
        _first_process(folder)
        if asked is None:
            there = ray.cluster_resources()
            asked = auto_workers(there.get("CPU", 1), there.get("memory", 0) / 2**30)
        yield min(asked, episodes)


# --- how it is started ----------------------------------------------------------------------------------------


def _defaults() -> dict[str, str | None]:
    """Settings of Ray that the user's own, where there are some, go before."""
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_worker_niceness": "0",  # Ray's 15 starves workers beside other work
        **ONE_THREAD,
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _private(folder: str) -> dict[str, str | None]:
    """Settings of a Ray that nobody else can reach, whatever the user's environment says about other Rays. All of its
    processes inherit them."""
    token = os.path.join(folder, "token")
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token,
        "RAY_AUTH_TOKEN": None,  # would win over the file, and whoever prints the environment would print it
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's name for: every port on the loopback interface only
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would build an environment for every process
        "RAY_RUNTIME_ENV_HOOK": None,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": None,  # of a Ray job that apt-bench is started from
        "RAY_ADDRESS": None,
        # A module of the user's that is called like one of Ray's would stop every process of it.
        "PYTHONPATH": None,
        RAY_PYTHONPATH: os.environ.get("PYTHONPATH"),
    }


def _neutral() -> str:
    """A folder without modules of the user's; that of apt-bench itself where it is not installed."""
    package = str(Path(__file__).parents[2])
    return package if package in user_folders() else "/"


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """These variables, None = unset; afterwards what was there before."""
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
    """What Ray reads only when it is imported, set again; and what it prints in the middle of a run kept to itself."""
    import ray._private.worker as ray_worker
    from ray._private import ray_constants

    changes: list[tuple[Any, str, Any]] = []
    if not logs:
        changes += [(ray_worker, "print_to_stdstream", lambda *_, **__: None)]
    if local:
        changes += [(ray_constants, "ENABLE_RAY_CLUSTER", False)]
        changes += [(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", False)]
        _read_again()
    changes = [c for c in changes if hasattr(c[0], c[1])]  # inner parts, which another Ray may not have
    before = [(where, name, getattr(where, name)) for where, name, _ in changes]
    for where, name, value in changes:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)


def _read_again() -> None:
    """Let Ray read its settings and the token from the environment once more: it keeps what it found first."""
    import ray

    inner: Any = ray._raylet
    inner.Config.initialize("")
    inner.AuthenticationTokenLoader.instance().reset_cache()


def _shut_down() -> None:
    import ray

    with contextlib.suppress(Exception):  # it is dead, perhaps
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises UserError where nothing listens at host:port. Ray would try for minutes."""
    import ray

    host, _, port = address.rpartition(":")
    if not host or "//" in host or not port.isascii() or not port.isdigit():
        return  # `auto`, `ray://...`, or a mistake that Ray names
    hosts = {host.strip("[]")}
    if hosts & {"localhost", "127.0.0.1", "::1"}:
        hosts.add(ray.util.get_node_ip_address())  # where Ray looks instead
    for one in hosts:
        try:
            socket.create_connection((one, int(port)), timeout=10).close()
            return
        except (OSError, OverflowError) as error:
            why = error
    raise UserError(
        f"Nothing listens at '{address}' ({why}). Is the Ray cluster up? `ray status` says where it is."
    )


def _not_started(address: str | None, error: Exception) -> UserError:
    from ray.exceptions import AuthenticationError

    why = one_line(describe_error(error), 500)
    if address and isinstance(error, AuthenticationError):
        return UserError(
            f"The Ray cluster at '{address}' refuses the token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the cluster's."
        )
    if address:
        return UserError(
            f"Cannot join the Ray cluster at '{address}': {why}. Is it up, is a Ray of it running on this machine, and "
            "has it this version of Ray?"
        )
    return RayLost(f"Cannot start Ray on this machine: {why}. Use --workers 0 to run without it.")


def _first_process(folder: str) -> None:
    """Wait until Ray has brought one process up that can import apt-bench. Raises RayLost where it cannot."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    remote: Any = ray.remote  # typed for decorators only
    answer = remote(auto_workers).options(num_cpus=0).remote(1, 1)
    end = time.monotonic() + START_SECONDS
    while True:
        check_alive()
        try:
            ray.get(answer, timeout=LOOK_SECONDS)
            return
        except GetTimeoutError:
            if time.monotonic() > end:
                raise RayLost(
                    f"Ray brought no process up within {START_SECONDS:.0f} s.{_last_words(folder)} Use --workers 0 to "
                    "run without it."
                ) from None
        except RayError as error:
            check_alive()
            raise RayLost(
                f"Ray's processes cannot run apt-bench: {one_line(describe_error(error), 500)}."
            ) from None


def _last_words(folder: str) -> str:
    """What the last process that was started said before it ended, for a message."""
    logs = sorted(Path(folder or "/nowhere").glob("r/session_*/logs/*worker*.err"), key=os.path.getmtime)
    for path in reversed(logs):
        if lines := path.read_text(errors="replace").strip().splitlines():
            return f" Its last words: {one_line(lines[-1], 300)}."
    return ""


@contextmanager
def _start_watched() -> Iterator[None]:
    """A Ray whose control process dies while it starts is silent for a minute and then ends this process with words of
    its own, in which nothing can be raised. End it sooner, with ours; nothing has run yet."""
    over = threading.Event()

    def watch() -> None:
        seen: set[int] = set()
        missed = 0
        while not over.wait(LOOK_SECONDS):
            now = children("gcs_server")
            missed = missed + 1 if seen - now else 0  # a start that fails ends it, too, and then says why
            seen |= now
            if missed > DEAD_LOOKS:
                say(
                    "Ray's control process (gcs_server) died while Ray started: it was killed, or the machine ran out "
                    "of memory. What is recorded is safe; the same command goes on from there."
                )
                os._exit(RayLost.exit_code)

    threading.Thread(target=watch, name="ray starts", daemon=True).start()
    try:
        yield
    finally:
        over.set()


# --- whether it is there --------------------------------------------------------------------------------------


DEAD_LOOKS = 10
"""So many looks in a row without the control process, while Ray starts."""


class _Pulse:
    """Whether the two processes without which nothing goes on take connections: the cluster's GCS, and the raylet that
    this process belongs to. Ray itself would wait for a minute and then end this process."""

    def __init__(self, places: Mapping[str, tuple[str, int]]) -> None:
        self._places = places
        self._heard = dict.fromkeys(places, time.monotonic())
        self._looked = time.monotonic()

    @staticmethod
    def of_this_session() -> _Pulse:
        import ray

        places: dict[str, tuple[str, int]] = {}
        with contextlib.suppress(AttributeError, ValueError):  # behind `ray://` there is another process
            context = ray.get_runtime_context()
            host, _, port = context.gcs_address.rpartition(":")
            places["control process (gcs_server)"] = (host.strip("[]"), int(port))
            for node in ray.nodes():
                if node["NodeID"] == context.get_node_id():
                    places["node process (raylet)"] = (node["NodeManagerAddress"], node["NodeManagerPort"])
        return _Pulse(places)

    def check(self, now: bool) -> None:
        """Raises RayLost where one of them is gone; looks once a second, or now."""
        if not now and time.monotonic() - self._looked < LOOK_SECONDS:
            return
        for what, place in self._places.items():
            try:
                socket.create_connection(place, timeout=LOOK_SECONDS).close()
                self._heard[what] = time.monotonic()
            except OSError as error:
                silent = time.monotonic() - self._heard[what]
                if isinstance(error, ConnectionRefusedError) or silent > UNHEARD_SECONDS:
                    raise RayLost(
                        f"Ray's {what} died: it was killed, or the machine ran out of memory"
                    ) from None
        self._looked = time.monotonic()


_pulse: _Pulse | None = None  # Ray has one session per process, too


@contextmanager
def _watched(pulse: _Pulse) -> Iterator[None]:
    global _pulse
    _pulse = pulse
    try:
        yield
    finally:
        _pulse = None


def check_alive(now: bool = False) -> None:
    """Raises RayLost where the Ray of this session died. Looks once a second, or `now`."""
    if _pulse is not None:
        _pulse.check(now)
