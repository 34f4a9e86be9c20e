"""Which exceptions mean that a server is gone. requests, urllib3 and Ray are installed with apt-bench and raise their
own here; of the other clients there are classes of the same package and name."""

from __future__ import annotations

import asyncio
import errno
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import requests
import urllib3

from apt_bench.core.errors import PolicyFault, ServerLost
from apt_bench.policies.guard import guarded
from apt_bench.policies.servers import CLIENTS, server_lost
from tests.wild import client_error


class Server(BaseHTTPRequestHandler):
    """`/503` answers with that status; `/cut` breaks off in the middle of its answer."""

    def do_GET(self) -> None:
        self.close_connection = True
        if self.path == "/cut":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nab")
        else:
            self.send_response(int(self.path[1:]))
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def nobody() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises((PolicyFault, ServerLost)) as stop:
        guarded(call)
    return stop.value


def test_a_real_client_without_its_server(url: str, nobody: str, silent: str) -> None:
    for call in (
        lambda: requests.get(nobody),
        lambda: requests.get(silent, timeout=0.1),
        lambda: requests.get(f"{url}/cut"),
        lambda: requests.get(f"{url}/503").raise_for_status(),
        lambda: urllib3.PoolManager(retries=False).request("GET", nobody),
        lambda: urllib3.PoolManager().request("GET", silent, timeout=0.1, retries=1),
        lambda: socket.create_connection(("127.0.0.1", int(nobody.rpartition(":")[2]))),
    ):
        assert isinstance(raised(call), ServerLost)
    for call in (
        lambda: requests.get(f"{url}/500").raise_for_status(),  # it answered: its policy raised
        lambda: requests.get(f"{url}/404").raise_for_status(),
        lambda: requests.get("nonsense"),
        lambda: requests.get(f"{url}/200").json(),
    ):
        assert isinstance(raised(call), PolicyFault)


@pytest.mark.parametrize(
    "error",
    [
        ServerLost("gone"),
        ConnectionRefusedError(),
        TimeoutError(),
        asyncio.IncompleteReadError(b"", 4),
        socket.gaierror(-2, "Name or service not known"),
        ssl.SSLError("bad record"),
        http.client.RemoteDisconnected("closed"),
        http.client.IncompleteRead(b""),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        ExceptionGroup("both", [ConnectionError(), TimeoutError()]),
        *(client_error(package, name) for package, names in CLIENTS.items() for name in names),
        client_error("websockets.exceptions", "ConnectionClosed"),
        client_error("zmq.error", "ZMQError"),
        client_error("httpcore._exceptions", "NetworkError"),
        client_error("aiohttp.client_exceptions", "ClientError"),
    ],
    ids=lambda error: f"{type(error).__module__}.{type(error).__name__}",
)
def test_it_is_lost(error: BaseException) -> None:
    assert server_lost(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the connection is gone"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        OSError(errno.ENOSPC, "No space left"),
        asyncio.CancelledError(),
        client_error("websockets.exceptions", "PayloadTooBig"),
        client_error("my_module", "ConnectionClosed"),
        client_error("requests_cache", "ConnectionError"),
        ExceptionGroup("one of them", [ConnectionError(), ValueError()]),
    ],
    ids=repr,
)
def test_it_is_not_lost(error: BaseException) -> None:
    assert not server_lost(error)


def test_a_future_that_is_not_done_in_time() -> None:
    release = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(release.wait)
        assert isinstance(raised(lambda: waiting.result(timeout=0.01)), ServerLost)
        release.set()


@pytest.mark.parametrize(
    ("code", "lost"), [("UNAVAILABLE", True), ("DEADLINE_EXCEEDED", True), ("UNKNOWN", False)]
)
def test_the_code_of_a_grpc_error_decides(code: str, lost: bool) -> None:
    error = client_error("grpc", "RpcError")
    error.code = lambda: type("StatusCode", (), {"name": code})  # type: ignore[attr-defined]
    assert server_lost(error) == lost


def test_rays_own_errors_but_not_what_a_remote_function_raised() -> None:
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError, WorkerCrashedError

    for error in (RayActorError(), WorkerCrashedError(), GetTimeoutError()):
        assert server_lost(error)
    there, gone = (
        RayTaskError("f", "its traceback", cause) for cause in (ValueError("bug"), ConnectionError("gone"))
    )
    assert not server_lost(there.as_instanceof_cause())
    assert server_lost(gone.as_instanceof_cause())


def wrapped(how: str) -> None:
    try:
        raise client_error("zmq.error", "Again")
    except Exception as error:
        if how == "from":
            raise RuntimeError("inference failed") from error
        if how == "from none":
            raise RuntimeError("inference failed") from None
        raise RuntimeError("inference failed")  # noqa: B904


@pytest.mark.parametrize(
    ("how", "kind"), [("from", ServerLost), ("while", ServerLost), ("from none", PolicyFault)]
)
def test_what_a_policy_makes_of_a_lost_server_is_one_unless_it_says_otherwise(how: str, kind: type) -> None:
    assert type(raised(lambda: wrapped(how))) is kind


def test_a_loop_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    first.__context__, second.__context__ = second, first
    assert not server_lost(first)
    with pytest.raises(PolicyFault):
        guarded(lambda: (_ for _ in ()).throw(first))
