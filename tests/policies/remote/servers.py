"""Small policy servers in threads: what all share, and those of the WebSocket protocols. Each checks every request and
answers with a known chunk.

A server never uses the client's mapping: it takes the request apart by itself, and turns a chunk in the environment's
convention into its own (`Fake.gripper`).
"""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from apt_bench.wire import openpi, vla_eval

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
class Fake(ABC):
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

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _stop(self) -> None: ...


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

    @abstractmethod
    def greet(self, connection: Any) -> None: ...

    @abstractmethod
    def reply(self, frame: bytes) -> bytes | str | None: ...

    @abstractmethod
    def error(self, text: str) -> bytes | str: ...


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
        chunks = np.stack([self._chunk_of(example) for example in found["examples"]])
        data = {"actions": chunks.tolist() if chunks.dtype.kind == "U" else chunks}
        return self._frame(status="ok", ok=True, data=data)

    def _chunk_of(self, example: dict[str, Any]) -> np.ndarray:
        expect("keys of the example", sorted(example), ["image", "lang"])
        agentview, wrist = (
            expect_array("image", image, "uint8", (224, 224, 3)) for image in example["image"]
        )
        return self.chunk(Seen(example["lang"], agentview, wrist))

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
