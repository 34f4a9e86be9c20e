"""openpi's protocol: the server sends its metadata; then every request gets a whole action chunk.

The protocol has no episodes. One begins with the connection and whenever the instruction changes.

Source: openpi@15a9616, `src/openpi/serving/websocket_policy_server.py`, and openpi-client 0.1.2.
"""

from __future__ import annotations

import time
import traceback
from typing import Any, ClassVar

from apt_bench import __version__
from apt_bench.core.errors import UserError
from apt_bench.envs.base import AGENTVIEW, WRIST
from apt_bench.serving.episodes import Said
from apt_bench.serving.listener import Reply
from apt_bench.serving.observations import canonical, chained, clipped, image_of, state_of
from apt_bench.serving.session import ServedPolicy
from apt_bench.wire import openpi as wire
from apt_bench.wire.arrays import WireError

IMAGES = {AGENTVIEW: "observation/image", WRIST: "observation/wrist_image"}
STATE, PROMPT = "observation/state", "prompt"

INTERNAL_ERROR = 1011
"""Code that closes the connection after an error."""

LINES, LENGTH = 12, 500
"""Last lines of a traceback that are sent, at most, and characters of each."""


class OpenPiSession:
    """One openpi client."""

    health: ClassVar[tuple[str, str, str]] = ("/healthz", "OK\n", "text/plain; charset=utf-8")

    def __init__(self, served: ServedPolicy) -> None:
        self._session = served.connect("openpi")
        self._spec = served.spec
        self._instruction = ""
        self._decisions = 0
        self._before: float | None = None  # ms of the last request

    def greeting(self) -> list[bytes]:
        """The metadata."""
        spec = self._spec
        return [
            wire.encode(
                {
                    "server": f"apt-bench {__version__}",
                    "policy": spec.name,
                    "weights": spec.provenance.weights,
                    "weights_sha256": spec.provenance.weights_sha256,
                    "horizon": spec.horizon,
                    "execute": spec.execute,
                }
            )
        ]

    def answer(self, frame: bytes | str) -> Reply:
        """The chunk; after an error its traceback as a text frame, and the connection is closed."""
        start = time.perf_counter()
        try:
            reply = self._infer(wire.decode(frame))  # type: ignore[arg-type]  # it refuses text
            timing = {"infer_ms": 1000 * (time.perf_counter() - start)}
            if self._before is not None:
                timing["prev_total_ms"] = self._before
            packed = wire.encode({**reply, "server_timing": timing})
        except Exception as error:
            last = "".join(traceback.format_exception(error)).strip().splitlines()[-LINES:]
            reason = "Internal server error. Traceback included in previous frame."
            return Reply("\n".join(line[:LENGTH] for line in last), INTERNAL_ERROR, reason)
        self._before = 1000 * (time.perf_counter() - start)
        return Reply(packed)

    def close(self) -> None:
        """The client has disconnected."""
        self._session.close()

    def _infer(self, request: Any) -> dict[str, Any]:
        if not isinstance(request, dict):
            raise WireError(f"a request is a map, not a {type(request).__name__}")
        needed = [*(IMAGES[camera] for camera in self._spec.cameras), STATE, PROMPT]
        if missing := [key for key in needed if key not in request]:
            raise UserError(
                f"The request has no '{missing[0]}'. Policy '{self._spec.name}' needs {', '.join(needed)}."
            )
        instruction = request[PROMPT]
        if not isinstance(instruction, str):
            raise UserError(f"'{PROMPT}' must be text; it is a {type(instruction).__name__}.")
        images = {camera: image_of(request[IMAGES[camera]], IMAGES[camera]) for camera in self._spec.cameras}
        state = canonical(state_of(request[STATE], STATE), None)
        if not self._session.running or instruction != self._instruction:
            self._session.begin(Said(instruction))
            self._instruction, self._decisions = instruction, 0
        step = self._decisions * self._spec.execute
        chunk = self._session.chunk(images, state, instruction, step)
        self._decisions += 1
        return {"actions": chained(chunk, state) if self._spec.actions == "pose" else clipped(chunk)}
