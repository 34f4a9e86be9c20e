"""vla-eval's model servers, one protocol for many models: OpenVLA, OpenVLA-OFT, GR00T, X-VLA, starVLA and others.

The server preprocesses for its model and keeps the chunk. It answers one action per observation, so every control step
is a decision (execute horizon 1). A server without `chunk_size` answers whole chunks. Its greeting names the fields it
expects. Source: vla-eval 0.8.0.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np

from apt_bench import __version__
from apt_bench.core.errors import ServerLost, UserError
from apt_bench.core.text import one_line
from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.policies.base import Interface
from apt_bench.policies.remote.links import Address, WebSocketLink
from apt_bench.policies.remote.server import RemotePolicy, api_key, rows, wrong_server
from apt_bench.suites import EpisodeSpec, load_suite
from apt_bench.wire import vla_eval as wire
from apt_bench.wire.arrays import WireError

GREETING_SECONDS = 60.0

GRIPPERS: dict[str, Literal["environment", "inverted"]] = {
    "binary_close_positive": "environment",
    "binary_close_negative": "inverted",
}
"""Format of the gripper in the server's `action_spec` -> `Interface.gripper`."""


@lru_cache(maxsize=64)
def _indices(suite: str, cell: str) -> Mapping[str, int]:
    """Task -> its index in the benchmark, which has the tasks of a cell in the same order. Empty for a suite that is
    not registered in this process."""
    try:
        found = load_suite(suite)
        return {task.name: i for i, task in enumerate(found.cell_tasks(found.cell(cell)))}
    except UserError:
        return {}


class VlaEvalPolicy(RemotePolicy):
    """A policy behind `vla-eval serve`.

    Args:
        server: Address, or several; see `RemotePolicy`.
        horizon: Actions in one reply, at most.
        execute: Actions executed of each reply.
    """

    schemes = ("ws", "wss")
    port = 8000

    def __init__(self, server: str | Sequence[str] = "localhost", horizon: int = 1, execute: int = 1) -> None:
        self._numbers = itertools.count(1)
        self._requested: dict[str, Any] = {}
        self.interface = Interface(chunking="server" if horizon == 1 else "client")
        self._began = 0.0
        self._start = 0
        super().__init__(server, horizon, execute)
        self.cameras = (AGENTVIEW, WRIST) if self._requested.get("send_wrist_image") else (AGENTVIEW,)

    def _open(self, address: Address) -> WebSocketLink:
        return WebSocketLink(address, api_key())

    def _greet(self) -> Mapping[str, Any]:
        hello = {"harness_version": f"apt-bench {__version__}", "protocol_version": wire.VERSION}
        link = cast(WebSocketLink, self._link)
        link.send(wire.encode(wire.Message("hello", hello, next(self._numbers))))
        try:
            frame = link.receive(GREETING_SECONDS)
            found = wire.decode(cast(bytes, frame))
        except WireError as error:
            raise wrong_server(self.address, "vla-eval", f"it answers hello with {error}") from error
        if found.type != "hello":
            text = f"it answers hello with '{found.type}' {found.payload.get('error', '')}"
            raise wrong_server(self.address, "vla-eval", text.strip())
        payload = dict(found.payload)
        version = payload.get("protocol_version")
        if version != wire.VERSION:
            raise UserError(
                f"{self.address.url} uses version {version!r:.20} of vla-eval's protocol; apt-bench uses "
                f"{wire.VERSION}."
            )
        requested = payload.get("observation_params")
        self._requested = dict(requested) if isinstance(requested, dict) else {}
        if not self._requested.get("send_state"):
            self.interface = dataclasses.replace(self.interface, state="none")
        self._check(payload.get("action_spec"))
        payload.pop("harness_version", None)  # not the policy's
        return payload

    def _check(self, actions: Any) -> None:
        """Refuse what LIBERO's controller cannot execute."""
        where = f"{self.address.url}: the policy"
        if self._requested.get("absolute_action"):
            raise UserError(f"{where} answers absolute poses; the suites are controlled by pose deltas.")
        if not isinstance(actions, dict):
            return

        def form(part: str) -> Any:
            found = actions.get(part)
            return found.get("format") if isinstance(found, dict) else None

        position, rotation, gripper = form("position"), form("rotation"), form("gripper")
        if position not in (None, "delta_xyz") or rotation not in (None, "axis_angle"):
            raise UserError(
                f"{where} answers position '{position}' and rotation '{rotation}'; the suites are controlled by "
                "'delta_xyz' and 'axis_angle'."
            )
        if gripper is not None and gripper not in GRIPPERS:
            raise UserError(f"{where} answers the gripper as '{gripper}'. Known: {', '.join(GRIPPERS)}.")
        if gripper is not None:
            self.interface = dataclasses.replace(self.interface, gripper=GRIPPERS[gripper])

    def _weights(self) -> str | None:
        name = self.metadata.get("model_server")
        return name if isinstance(name, str) else None

    def _begin(self, episode: EpisodeSpec) -> None:
        self._began = time.monotonic()
        task = {
            "name": episode.prompt,
            "suite": str(episode.args.get("benchmark", episode.key.suite)),
            "task_id": _indices(episode.key.suite, episode.key.cell).get(episode.key.task, 0),
            "episode_idx": episode.key.init,
        }
        link = cast(WebSocketLink, self._link)
        self._start = next(self._numbers)
        link.send(wire.encode(wire.Message("episode_start", {"task": task}, self._start)))

    def _infer(self, observation: Observation) -> np.ndarray:
        images = {name: self._image(observation, name) for name in self.cameras}
        payload: dict[str, Any] = {"images": images, "task_description": observation.instruction}
        if self.interface.state != "none":
            payload["states"] = np.asarray(observation.state, dtype=np.float64)
        number = next(self._numbers)
        link = cast(WebSocketLink, self._link)
        link.send(wire.encode(wire.Message("observation", payload, number)))
        while True:
            frame = link.receive()
            if isinstance(frame, str):
                raise ServerLost(f"{self.address.url} failed: {one_line(frame, 500)}")
            found = wire.decode(frame)
            if found.type == "error" and found.seq and found.seq < self._start:
                continue  # of the end of the episode before
            if found.type == "error":
                raise ServerLost(f"{self.address.url} failed: {one_line(found.payload.get('error'), 500)}")
            if found.type != "action":
                raise WireError(f"'{found.type:.40}' in answer to an observation")
            if found.seq == number:
                break
        if "actions" not in found.payload:
            raise WireError("an action without `actions`")
        return rows(found.payload["actions"])

    def _end(self, episode: EpisodeSpec, outcome: Any) -> None:
        payload = {
            "metrics": {"success": bool(outcome.success)},
            "steps": int(outcome.steps),
            "elapsed_sec": round(time.monotonic() - self._began, 3),
        }
        cast(WebSocketLink, self._link).send(
            wire.encode(wire.Message("episode_end", payload, next(self._numbers)))
        )
