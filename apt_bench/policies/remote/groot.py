"""Isaac-GR00T's policy server.

Request: both images at the environment's size, the state as seven fields (position, axis-angle, both fingers), the
instruction. Reply: a chunk of seven fields whose gripper is in [0, 1], 1 = open. The dtypes are those that the server
asserts: uint8 and float32. Sources: Isaac-GR00T, `gr00t/policy/server_client.py`, `gr00t/policy/gr00t_policy.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np

from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.core.text import one_line
from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.policies.base import Interface
from apt_bench.policies.remote.links import Address, ZmqLink
from apt_bench.policies.remote.server import (
    RemotePolicy,
    api_key,
    mapping,
    numbers,
    rows,
    wrong_server,
)
from apt_bench.suites import EpisodeSpec
from apt_bench.wire import groot as wire
from apt_bench.wire.arrays import WireError

Layout = Literal["nested", "flat", "n1.5"]
"""Form of a request: `{"video": {"image": (1, 1, H, W, 3)}}`; `{"video.image": (1, 1, H, W, 3)}` of the simulation
wrapper; `{"video.image": (1, H, W, 3)}` of N1.5's server, which has neither options nor `reset`."""

FIELDS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
"""Fields of state and action, in the order of the environment's action. roll, pitch and yaw hold the axis-angle."""

IMAGES = {"image": AGENTVIEW, "wrist_image": WRIST}
PROMPT = "annotation.human.action.task_description"
PING_SECONDS = 10.0


class GrootPolicy(RemotePolicy):
    """A policy behind Isaac-GR00T's `run_gr00t_server.py`.

    Args:
        server: Address, or several; see `RemotePolicy`.
        execute: Actions executed of each chunk; 8 in GR00T's README for LIBERO, 16 in vla-eval.
        layout: Form of the request; None = "n1.5" where the server's modality configuration has keys such as
            `video.image`, else "nested". "flat" is for a server that was started with `--use-sim-policy-wrapper`.
        arrays: How arrays are written: "npy" (N1.5, N1.6), or "msgpack_numpy" (seen in clients of N1.7).
        horizon: Actions in one chunk, at most; None = what the server's modality configuration has.
    """

    schemes = ("tcp",)
    port = 5555
    interface = Interface(gripper="unit_open")

    def __init__(
        self,
        server: str | Sequence[str] = "localhost",
        execute: int = 8,
        layout: Layout | None = None,
        arrays: wire.Arrays = "npy",
        horizon: int | None = None,
    ) -> None:
        if arrays not in ("npy", "msgpack_numpy") or layout not in (None, "nested", "flat", "n1.5"):
            raise UserError("arrays is npy or msgpack_numpy; layout is nested, flat or n1.5.")
        self._arrays: wire.Arrays = arrays
        self._layout: Layout = layout or "nested"
        self._ask_layout = layout is None
        super().__init__(server, horizon or 16, execute)
        if horizon is None:
            self._horizon = _horizon(self.metadata) or 16

    def _open(self, address: Address) -> ZmqLink:
        link = ZmqLink(address)
        try:
            link.ask(self._message("ping"), PING_SECONDS)
        except ServerLost as error:
            link.close()
            raise ServerLost(f"no GR00T server answers at {address.url}: {error}") from error
        return link

    def _greet(self) -> Mapping[str, Any]:
        try:
            found = self._called_endpoint("get_modality_config")
            config = mapping(found, "the modality configuration")
        except WireError as error:
            raise wrong_server(self.address, "GR00T", str(error)) from error
        keys = _keys(config, "video")
        if self._ask_layout and any("." in key for key in keys):
            self._layout = "n1.5"
        missing = {key.rpartition(".")[2] for key in keys} - IMAGES.keys()
        if missing:
            raise UserError(
                f"{self.address.url} expects the images {', '.join(sorted(missing))}, which LIBERO does not have. It "
                "serves another embodiment; start it with --embodiment-tag LIBERO_PANDA or the checkpoint's own."
            )
        return config

    def _begin(self, episode: EpisodeSpec) -> None:
        if self._layout != "n1.5":
            self._called_endpoint("reset", {"options": None})

    def _infer(self, observation: Observation) -> np.ndarray:
        request = self._request(observation)
        data = request if self._layout == "n1.5" else {"observation": request, "options": None}
        reply = self._called_endpoint("get_action", data)
        return chunk_of(reply)

    def _request(self, observation: Observation) -> dict[str, Any]:
        values = np.asarray(observation.state, dtype=np.float32)
        lead = (None,) if self._layout == "n1.5" else (None, None)  # batch, and time
        images = {key: np.ascontiguousarray(observation.images[name])[lead] for key, name in IMAGES.items()}
        state = {name: values[i : i + 1][lead] for i, name in enumerate(FIELDS[:6])}
        state["gripper"] = values[6:8][lead]
        if self._layout != "nested":
            return {
                **{f"video.{k}": v for k, v in images.items()},
                **{f"state.{k}": v for k, v in state.items()},
                PROMPT: [observation.instruction],
            }
        return {"video": images, "state": state, "language": {PROMPT: [[observation.instruction]]}}

    def _message(self, endpoint: str, data: Mapping[str, Any] | None = None) -> bytes:
        message: dict[str, Any] = {"endpoint": endpoint}
        if data is not None:
            message["data"] = dict(data)
        if key := api_key():
            message["api_token"] = key
        return wire.encode(message, self._arrays)

    def _called_endpoint(self, endpoint: str, data: Mapping[str, Any] | None = None) -> Any:
        found = wire.decode(cast(bytes, self._link.ask(self._message(endpoint, data))))
        if isinstance(found, dict) and "error" in found:
            text = one_line(found["error"], 500)
            if "unauthorized" in text.lower() or "api token" in text.lower():
                raise UserError(
                    f"{self.address.url} refuses access ({text}). Set its token in APT_BENCH_API_KEY."
                )
            raise ServerLost(f"{self.address.url} failed: {text}")
        return found


def chunk_of(reply: Any) -> np.ndarray:
    """The chunk (n, 7) of a reply, in the server's convention: `[action, info]`, a map of fields, or a list with one
    map for each step. Fields are (1, n, 1), (n, 1), (n,) or numbers. Raises PolicyFault for fields that do not fit each
    other, WireError for anything else."""
    if isinstance(reply, list) and len(reply) == 2 and _is_action(reply[0]) and not _is_action(reply[1]):
        reply = reply[0]
    if isinstance(reply, list) and reply and all(map(_is_action, reply)):
        return np.concatenate([chunk_of(step) for step in reply])
    if not _is_action(reply):
        raise WireError("a reply without the fields x, y, z, roll, pitch, yaw and gripper")
    fields = {str(key).rpartition(".")[2]: value for key, value in reply.items()}
    columns = []
    for name in FIELDS:
        value = numbers(fields[name], f"'{name}'")
        if value.size != max(value.shape, default=1):
            raise PolicyFault(
                f"answered '{name}' of shape {value.shape} instead of (1, n, 1), (n, 1) or (n,)"
            )
        columns.append(value.ravel())
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise PolicyFault(f"answered fields of different lengths: {sorted(lengths)}")
    return rows(np.stack(columns, axis=1))


def _is_action(found: Any) -> bool:
    return isinstance(found, dict) and set(FIELDS) <= {str(key).rpartition(".")[2] for key in found}


def _config(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    part = config.get(kind)
    inner = part.get("as_json", part) if isinstance(part, dict) else None
    if isinstance(inner, str):  # N1.5
        try:
            inner = json.loads(inner)
        except (ValueError, RecursionError):
            inner = None
    return inner if isinstance(inner, dict) else {}


def _keys(config: Mapping[str, Any], kind: str) -> list[str]:
    keys = _config(config, kind).get("modality_keys")
    return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []


def _horizon(config: Mapping[str, Any]) -> int | None:
    steps = _config(config, "action").get("delta_indices")
    return len(steps) if isinstance(steps, list) and 1 <= len(steps) <= 10_000 else None
