"""One small policy server per protocol, in threads. Each checks every request and answers with a known chunk.

A server never uses the client's mapping: it takes the request apart by itself, and turns a chunk in the environment's
convention into its own (`Fake.gripper`).
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import zmq
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve
from websockets.utils import accept_key

from apt_bench.wire import groot, json_numpy, openpi, vla_eval

CHUNK = np.linspace(-0.9, 0.9, 16 * 7).reshape(16, 7)
CHUNK[:, 6] = np.where(np.arange(16) % 3, 1.0, -1.0)
"""In the environment's convention: -1 opens, +1 closes."""


def card(wrist: bool = False, size: int = 256) -> np.ndarray:
    """The test card: red grows to the right, green downwards; the wrist's has blue 200."""
    ramp = np.linspace(0, 255, size).round().astype(np.uint8)
    image = np.zeros((size, size, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = ramp[None, :], ramp[:, None], 200 if wrist else 0
    return image


def is_card(image: np.ndarray, wrist: bool = False) -> bool:
    """Whether this is the upright test card, resized or cropped in whatever way."""
    n, values = len(image) // 2, image.astype(float)
    return bool(
        values[:, n:, 0].mean() - values[:, :n, 0].mean() > 90
        and values[n:, :, 1].mean() - values[:n, :, 1].mean() > 90
        and abs(values[..., 2].mean() - (200 if wrist else 0)) < 20
    )


class Wrong(Exception):
    """A request that the server refuses."""


def expect(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise Wrong(f"{what}: {found!r:.300} instead of {expected!r:.300}")


def expect_array(what: str, found: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    expect(what, (type(found).__name__, str(found.dtype), found.shape), ("ndarray", dtype, shape))
    return np.asarray(found)


@dataclass
class Seen:
    """What a request says. None: not sent."""

    prompt: str
    agentview: np.ndarray
    wrist: np.ndarray | None = None
    state: np.ndarray | None = None


@dataclass
class Fake:
    """Common to all servers.

    fault: what goes wrong with the next replies: error, text, drop, hang, garbage, shape, nan, words.
    late: seconds before the greeting. block: seconds before a reply. status: HTTP status instead of an answer.
    """

    answer: Callable[[Seen], np.ndarray] = lambda seen: CHUNK
    fault: str = ""
    late: float = 0.0
    block: float = 0.0
    status: int = 0
    key: str = ""  # of APT_BENCH_API_KEY, where one is needed
    greeting: dict[str, Any] = field(default_factory=dict)
    port: int = 0
    requests: list[Any] = field(default_factory=list)  # decoded
    seen: list[Seen] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    clients: int = 0

    scheme = ""
    gripper = staticmethod(lambda g: np.where(g < 0, 1.0, 0.0))  # to [0, 1], 1 = open
    steps = 8

    def __enter__(self) -> Any:
        self._over = threading.Event()
        self._start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._stop()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def chunk(self, seen: Seen) -> np.ndarray:
        """The answer in the server's convention, with this server's faults."""
        self.seen.append(seen)
        self._over.wait(self.block)
        while self.fault == "hang" and not self._over.wait(0.02):
            pass
        found = np.array(self.answer(seen))[: self.steps]
        found[:, 6] = self.gripper(found[:, 6])
        if self.fault == "nan":
            found[0, 2] = np.nan
        if self.fault == "words":
            return found.astype(str)
        return found[:, :6] if self.fault == "shape" else found

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError


class _WebSocket(Fake):
    scheme = "ws"

    def _start(self) -> None:
        self._open: set[Any] = set()
        self._server = serve(
            self._run, "127.0.0.1", self.port, compression=None, max_size=None, process_request=self._admit
        )
        self.port = self._server.socket.getsockname()[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _stop(self) -> None:
        self._server.shutdown()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)

    def _admit(self, connection: Any, request: Any) -> Any:
        if self.key and request.headers.get("Authorization") != f"Api-Key {self.key}":
            return connection.respond(401, "no")
        return connection.respond(self.status, "no") if self.status else None

    def _run(self, connection: Any) -> None:
        self._open.add(connection)
        self.clients += 1
        try:
            self._over.wait(self.late)
            self.greet(connection)
            for frame in connection:
                self._reply(connection, frame)
        except (ConnectionClosed, OSError):
            pass
        finally:
            self._open.discard(connection)

    def _reply(self, connection: Any, frame: Any) -> None:
        try:
            answer = self.error("RuntimeError: out of memory") if self.fault == "error" else self.reply(frame)
        except Wrong as error:
            self.wrong.append(str(error))
            answer = self.error(str(error))
        if answer is None:
            return
        if self.fault == "drop":
            connection.socket.sendall(b"\x82\x7f" + (10**6).to_bytes(8, "big") + b"abc")
            connection.socket.shutdown(socket.SHUT_RDWR)
        elif self.fault == "text" or isinstance(answer, str):
            connection.send(
                answer if isinstance(answer, str) else "Traceback ...\nValueError: a shape is wrong"
            )
            connection.close(1011)
        else:
            connection.send(b"\xc1 no msgpack" if self.fault == "garbage" else answer)

    def greet(self, connection: Any) -> None:
        raise NotImplementedError

    def reply(self, frame: bytes) -> bytes | str | None:
        raise NotImplementedError

    def error(self, text: str) -> bytes | str:
        raise NotImplementedError


class OpenPi(_WebSocket):
    gripper = staticmethod(lambda g: g)
    steps = 10

    def greet(self, connection: Any) -> None:
        connection.send(openpi.encode(self.greeting))

    def reply(self, frame: bytes) -> bytes:
        found = openpi.decode(frame)
        self.requests.append(found)
        expect(
            "keys",
            sorted(found),
            ["observation/image", "observation/state", "observation/wrist_image", "prompt"],
        )
        agentview = expect_array("image", found["observation/image"], "uint8", (224, 224, 3))
        wrist = expect_array("wrist", found["observation/wrist_image"], "uint8", (224, 224, 3))
        state = expect_array("state", found["observation/state"], "float64", (8,))
        chunk = self.chunk(Seen(found["prompt"], agentview, wrist, state))
        if chunk.dtype.kind == "U":
            return openpi.encode({"actions": chunk.tolist()})
        return openpi.encode(
            {"actions": chunk, "server_timing": {"infer_ms": 12.5}, "policy_timing": {"infer_ms": 9.0}}
        )

    def error(self, text: str) -> str:
        return f"Traceback (most recent call last):\n  ...\n{text}"


STARVLA: Mapping[str, Any] = {
    "env": "starvla_policy_server", "ckpt_path": "/ckpt/steps_30000.pt", "action_chunk_size": 8,
    "available_unnorm_keys": ["franka"], "default_unnorm_key": "franka", "training_obs_image_size": [224, 224],
}  # fmt: skip


class StarVla(_WebSocket):
    def greet(self, connection: Any) -> None:
        connection.send(openpi.encode({**STARVLA, **self.greeting}))

    def reply(self, frame: bytes) -> bytes:
        found = openpi.decode(frame)
        self.requests.append(found)
        expect("keys", sorted(found), ["do_sample", "examples", "num_ddim_steps", "unnorm_key", "use_ddim"])
        (example,) = found["examples"]
        expect("keys of the example", sorted(example), ["image", "lang"])
        agentview, wrist = (
            expect_array("image", image, "uint8", (224, 224, 3)) for image in example["image"]
        )
        chunk = self.chunk(Seen(example["lang"], agentview, wrist))
        data = {"actions": chunk.tolist() if chunk.dtype.kind == "U" else chunk[None]}
        return self._frame(status="ok", ok=True, data=data)

    def error(self, text: str) -> bytes:
        return self._frame(status="error", ok=False, error={"message": text})

    def _frame(self, **parts: Any) -> bytes:
        return openpi.encode({"type": "inference_result", "request_id": "default", **parts})


def part(dims: int, kind: str) -> dict[str, Any]:
    return {"dims": dims, "format": kind, "range": [-1, 1]}


VLA_EVAL: Mapping[str, Any] = {
    "harness_version": "0.8.0",
    "protocol_version": 1,
    "model_server": "Full",
    "observation_params": {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": True},
    "action_spec": {
        "position": part(3, "delta_xyz"),
        "rotation": part(3, "axis_angle"),
        "gripper": part(1, "binary_close_positive"),
    },
}


class VlaEval(_WebSocket):
    """As the genuine one, it keeps a chunk and answers one row per observation.

    refuse_episode: the type of the next message that fails, `episode_start` or `episode_end`."""

    gripper = staticmethod(lambda g: g)
    steps = 4
    refuse_episode = ""

    def greet(self, connection: Any) -> None:
        self._rest: list[np.ndarray] = []

    def reply(self, frame: bytes) -> bytes | None:
        found = vla_eval.decode(frame)
        self.requests.append(found)
        if found.type == "hello":
            expect("version", found.payload["protocol_version"], 1)
            return self._frame("hello", {**VLA_EVAL, **self.greeting}, found.seq)
        if found.type in ("episode_start", "episode_end"):
            self._rest = []
            if found.type == self.refuse_episode:
                self.refuse_episode = ""
                return self._frame("error", {"error": f"{found.type}_failed"}, found.seq)
            return None
        params = {**VLA_EVAL, **self.greeting}["observation_params"]
        keys = {"images", "task_description"} | ({"states"} if params.get("send_state") else set())
        expect("keys", set(found.payload), keys)
        views = ["agentview", "wrist"] if params.get("send_wrist_image") else ["agentview"]
        expect("views", sorted(found.payload["images"]), views)
        images = [expect_array(v, found.payload["images"][v], "uint8", (256, 256, 3)) for v in views]
        state = found.payload.get("states")
        if state is not None:
            expect_array("states", state, "float64", (8,))
        seen = Seen(
            found.payload["task_description"], images[0], images[1] if len(images) > 1 else None, state
        )
        if not self._rest or self.fault:
            self._rest = list(self.chunk(seen))
        row = self._rest.pop(0)
        return self._frame(
            "action", {"actions": row.tolist() if row.dtype.kind == "U" else np.float32(row)}, found.seq
        )

    def error(self, text: str) -> bytes:
        return self._frame(
            "error", {"error": text}, self.requests[-1].seq + 1 if self.fault else self.requests[-1].seq
        )

    @staticmethod
    def _frame(kind: str, payload: Mapping[str, Any], seq: int) -> bytes:
        return vla_eval.encode(vla_eval.Message(kind, payload, seq))


FIELDS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def modality(keys: tuple[str, ...], steps: int = 1, text: bool = False) -> dict[str, Any]:
    config = {"delta_indices": list(range(steps)), "modality_keys": list(keys)}
    return {"__ModalityConfig_class__": True, "as_json": json.dumps(config) if text else config}


class Groot(Fake):
    """form: nested, flat or n1.5, of requests and replies. arrays: how replies are encoded."""

    scheme = "tcp"
    steps = 16
    form = "nested"
    arrays: groot.Arrays = "npy"
    views: tuple[str, ...] = ("image", "wrist_image")

    def _start(self) -> None:
        self._socket = zmq.Context.instance().socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        if self.port:
            self._socket.bind(self.url)
        else:
            self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        self._thread.join(10)

    def _run(self) -> None:
        while not self._over.is_set():
            if self._socket.poll(50):
                message = self._socket.recv()
                try:
                    answer = self._encoded(self._handled(groot.decode(message)))
                except Wrong as error:
                    self.wrong.append(str(error))
                    answer = self._encoded({"error": str(error)})
                while self.fault in ("drop", "hang") and not self._over.wait(0.02):
                    pass  # ZeroMQ delivers whole messages or none
                self._socket.send(b"\xc1" if self.fault == "garbage" else answer)
        self._socket.close(0)

    def _encoded(self, message: Any) -> bytes:
        return groot.encode(message, self.arrays)

    def _handled(self, found: dict[str, Any]) -> Any:
        self.requests.append(found)
        if self.key and found.get("api_token") != self.key:
            return {"error": "Unauthorized: Invalid API token"}
        endpoint = found["endpoint"]
        if endpoint == "ping":
            return {"status": "ok", "message": "Server is running"}
        if endpoint == "get_modality_config":
            old = self.form == "n1.5"
            prefix = "video." if old else ""
            views = tuple(prefix + view for view in self.views)
            return {"video": modality(views, text=old), "action": modality(FIELDS, self.steps, text=old)}
        if endpoint == "reset" and self.form != "n1.5":
            expect("data", found["data"], {"options": None})
            return {}
        expect("endpoint", endpoint, "get_action")
        if self.fault == "error":
            return {"error": "RuntimeError: a tokenizer failed"}
        chunk = self.chunk(self._seen(found["data"]))
        if self.fault == "words":
            return {name: chunk[:, i].tolist() for i, name in enumerate(FIELDS)}
        if self.fault == "shape":
            chunk = np.concatenate([chunk, chunk[:, :1]], axis=1)
            return {name: chunk[: 3 + i % 2, i] for i, name in enumerate(FIELDS)}
        columns = {name: np.float32(chunk[:, i]) for i, name in enumerate(FIELDS)}
        if self.form == "n1.5":
            return {f"action.{name}": value for name, value in columns.items()}
        if self.form == "steps":
            return [{name: value[i] for name, value in columns.items()} for i in range(len(chunk))]
        prefix = "action." if self.form == "flat" else ""
        return [{prefix + name: value[None, :, None] for name, value in columns.items()}, {}]

    def _seen(self, data: dict[str, Any]) -> Seen:
        lead: tuple[int, ...] = (1, 1)
        if self.form == "n1.5":
            lead, observation = (1,), data
        else:
            expect("keys", sorted(data), ["observation", "options"])
            observation = data["observation"]
        if self.form in ("flat", "n1.5"):
            prompt = observation.pop("annotation.human.action.task_description")
            nested: dict[str, Any] = {"video": {}, "state": {}}
            for key, value in observation.items():
                kind, _, name = key.partition(".")
                nested[kind][name] = value
            (text,) = prompt
        else:
            nested = observation
            ((text,),) = nested["language"]["annotation.human.action.task_description"]
        expect("views", sorted(nested["video"]), ["image", "wrist_image"])
        images = [
            expect_array(v, nested["video"][v], "uint8", (*lead, 256, 256, 3))[(0,) * len(lead)]
            for v in ("image", "wrist_image")
        ]
        expect("state", sorted(nested["state"]), sorted(FIELDS))
        state = [
            expect_array(n, nested["state"][n], "float32", (*lead, 2 if n == "gripper" else 1)).ravel()
            for n in FIELDS
        ]
        return Seen(text, images[0], images[1], np.concatenate(state))


class _Rest(Fake):
    scheme = "http"

    def _start(self) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                fake._post(self)

            def log_message(self, *_: object) -> None:
                pass

        self._connections: list[socket.socket] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for one in self._connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _post(self, http: BaseHTTPRequestHandler) -> None:
        self._connections.append(http.connection)
        body = http.rfile.read(int(http.headers["Content-Length"]))
        status = self.status or (200 if http.path == "/act" else 404)
        if self.key and http.headers.get("Authorization") != f"Bearer {self.key}":
            status = 401
        answer = b"no"
        if status == 200:
            found = json_numpy.decode(body)
            self.requests.append(found)
            try:
                seen = self.read(found)
                self.clients += seen.prompt == "do nothing"
                answer = json_numpy.encode("error") if self.fault == "error" else self.wrap(self.chunk(seen))
            except Wrong as error:
                self.wrong.append(str(error))
                answer = json_numpy.encode("error")
        http.send_response(status)
        http.send_header("Content-Length", str(len(answer)))
        http.end_headers()
        if self.fault == "drop":
            http.wfile.write(answer[: len(answer) // 2])
            http.connection.shutdown(socket.SHUT_RDWR)
        else:
            http.wfile.write(b"x" * len(answer) if self.fault == "garbage" else answer)

    def forget(self) -> None:
        """Close every connection, as uvicorn does after 5 s."""
        for one in self._connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._connections.clear()
        time.sleep(0.05)

    def read(self, found: dict[str, Any]) -> Seen:
        raise NotImplementedError

    def wrap(self, chunk: np.ndarray) -> bytes:
        raise NotImplementedError


class OpenVla(_Rest):
    steps = 1
    keys = ("image", "instruction")

    def read(self, found: dict[str, Any]) -> Seen:
        expect("keys", set(found) - {"unnorm_key"}, set(self.keys))
        if found.get("unnorm_key") not in (None, "libero_spatial"):
            raise Wrong("unnorm_key")
        return Seen(found["instruction"], expect_array("image", found["image"], "uint8", (224, 224, 3)))

    def wrap(self, chunk: np.ndarray) -> bytes:
        return json_numpy.encode(chunk[0].tolist() if chunk.dtype.kind == "U" else chunk[0])


class Oft(_Rest):
    twice = False

    def read(self, found: dict[str, Any]) -> Seen:
        expect("keys", set(found), {"full_image", "wrist_image", "state", "instruction"})
        images = [expect_array(v, found[v], "uint8", (256, 256, 3)) for v in ("full_image", "wrist_image")]
        return Seen(found["instruction"], *images, expect_array("state", found["state"], "float64", (8,)))

    def wrap(self, chunk: np.ndarray) -> bytes:
        body = json_numpy.encode(chunk.tolist() if chunk.dtype.kind == "U" else list(chunk))
        return json_numpy.encode(body.decode()) if self.twice else body


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """The port of a WebSocket server that reads nothing after the handshake."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            connection = server.accept()[0]
            connections.append(connection)
            key = connection.recv(4096).decode().partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
            lines = ("HTTP/1.1 101 Go", "Upgrade: websocket", "Connection: Upgrade")
            answer = "\r\n".join((*lines, f"Sec-WebSocket-Accept: {accept_key(key)}", "", ""))
            connection.sendall(answer.encode())

        connections: list[socket.socket] = []
        threading.Thread(target=run, daemon=True).start()
        yield server.getsockname()[1]
        for connection in connections:
            connection.close()


@contextlib.contextmanager
def listener() -> Iterator[int]:
    """The port of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
