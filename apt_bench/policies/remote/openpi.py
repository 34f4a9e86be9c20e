"""openpi's policy server: pi0, pi0-FAST and pi0.5.

Request: both images resized with padding to 224x224, the 8 numbers of the state as they are (the server normalises
them), the instruction. Reply: a chunk of environment actions, un-normalised by the server; the gripper is the
environment's. Source: openpi@15a9616, `examples/libero/main.py`, `src/openpi/policies/libero_policy.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from apt_bench.core.errors import ServerLost
from apt_bench.core.text import one_line
from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.policies.base import Interface
from apt_bench.policies.remote.links import Address, WebSocketLink
from apt_bench.policies.remote.server import RemotePolicy, api_key, mapping, rows, wrong_server
from apt_bench.wire import openpi as wire
from apt_bench.wire.arrays import WireError

GREETING_SECONDS = 60.0
"""A server that is busy with another client greets late."""


class OpenPiPolicy(RemotePolicy):
    """A policy behind openpi's `scripts/serve_policy.py`.

    Args:
        server: Address, or several; see `RemotePolicy`.
        horizon: Actions of the server's chunks (10 for pi05_libero and pi0_fast_libero, 50 for pi0_libero).
        execute: Actions executed of each chunk; openpi's evaluation executes 5.
        size: Side of the images in the request, pixels.
    """

    schemes = ("ws", "wss")
    port = 8000

    def __init__(
        self, server: str | Sequence[str] = "localhost", horizon: int = 10, execute: int = 5, size: int = 224
    ) -> None:
        self.interface = Interface(image_size=(size, size), resize="bilinear_pad")
        super().__init__(server, horizon, execute)

    def _open(self, address: Address) -> WebSocketLink:
        return WebSocketLink(address, api_key())

    def _greet(self) -> Mapping[str, Any]:
        metadata = greeting(self.address, cast(WebSocketLink, self._link), "openpi")
        if "action_chunk_size" in metadata:
            raise wrong_server(self.address, "openpi", "its greeting is starVLA's; use --policy langforce")
        return metadata

    def _infer(self, observation: Observation) -> np.ndarray:
        request = {
            "observation/image": self._image(observation, AGENTVIEW),
            "observation/wrist_image": self._image(observation, WRIST),
            "observation/state": np.asarray(observation.state, dtype=np.float64),
            "prompt": observation.instruction,
        }
        reply = mapping(answer(self.address, self._link.ask(wire.encode(request))), "the reply")
        if "actions" not in reply:
            raise WireError(f"a reply without `actions`; it has {one_line(sorted(map(str, reply)), 200)}")
        if isinstance(timing := reply.get("server_timing"), dict):
            self._took("infer_ms", timing.get("infer_ms"))
        return rows(reply["actions"])


def greeting(address: Address, link: WebSocketLink, protocol: str) -> dict[str, Any]:
    """The metadata that an openpi or starVLA server sends first. Raises UserError for another protocol's server."""
    try:
        frame = link.receive(GREETING_SECONDS)
    except ServerLost as error:
        raise ServerLost(
            f"{error}; an {protocol} server sends its metadata first, other servers wait (vla-eval's do)"
        ) from error
    try:
        return mapping(answer(address, frame), "the greeting")
    except WireError as error:
        raise wrong_server(address, protocol, str(error)) from error


def answer(address: Address, frame: bytes | str) -> Any:
    """The content of a reply. A text frame is the traceback of an exception in the server: raises ServerLost, because
    the server closes the connection after it."""
    if isinstance(frame, str):
        last = frame.strip().rpartition("\n")[2]
        raise ServerLost(f"{address.url} failed: {one_line(last, 500)}")
    return wire.decode(frame)
