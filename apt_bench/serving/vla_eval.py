"""vla-eval's protocol: greetings, episode events, and one action for each observation.

The server keeps the chunk and executes `PolicySpec.execute` actions of it. An episode starts in the policy at its first
observation, so that every message of the server answers one of the client. Source: vla-eval 0.8.0,
`model_servers/serve.py` and `connection.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from apt_bench import __version__
from apt_bench.core.errors import UserError, describe_error
from apt_bench.core.text import one_line
from apt_bench.envs.base import WRIST
from apt_bench.serving.episodes import Said
from apt_bench.serving.listener import Reply
from apt_bench.serving.observations import canonical, clipped, image_of, state_of, towards
from apt_bench.serving.session import ServedPolicy
from apt_bench.wire import vla_eval as wire
from apt_bench.wire.arrays import WireError

ACTION_SPEC = {
    "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": [-1, 1]},
    "rotation": {"name": "rotation", "dims": 3, "format": "axis_angle", "range": [-3.15, 3.15]},
    "gripper": {"name": "gripper", "dims": 1, "format": "binary_close_positive", "range": [-1, 1]},
}
OBSERVATION_SPEC = {
    "image": {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"},
    "state": {"name": "state", "dims": 8, "format": "eef_pos3_axisangle3_gripper2"},
    "language": {"name": "language", "dims": 0, "format": "language"},
}
"""vla-eval's own constants for LIBERO."""


class VlaEvalSession:
    """One vla-eval client."""

    health: ClassVar[tuple[str, str, str]] = ("/health", '{"status": "ok"}\n', "application/json")

    def __init__(self, served: ServedPolicy) -> None:
        self._session = served.connect("vla-eval")
        self._spec = served.spec
        self._task: dict[str, Any] = {}
        self._new_episode()

    def greeting(self) -> list[bytes]:
        """Nothing: the client sends the first message."""
        return []

    def answer(self, frame: bytes | str) -> Reply:
        """The answer to a message, if it has one. After an error the connection stays open."""
        number = 0
        try:
            message = wire.decode(frame)  # type: ignore[arg-type]  # it refuses text
            number = message.seq
            found = self._answer(message)
            return Reply(None if found is None else wire.encode(wire.Message(*found, number)))
        except Exception as error:
            known = isinstance(error, UserError | WireError | ConnectionError)
            text = one_line(error if known else describe_error(error), 1000)
            return Reply(wire.encode(wire.Message("error", {"error": text}, number)))

    def close(self) -> None:
        """The client has disconnected."""
        self._session.close()

    def _answer(self, message: wire.Message) -> tuple[str, Mapping[str, Any]] | None:
        if message.type == "hello":
            return "hello", self._hello(message.payload)
        if message.type == "episode_start":
            task = message.payload.get("task")
            self._session.end()
            self._new_episode()
            self._task = task if isinstance(task, dict) else {}
            return None
        if message.type == "observation":
            return "action", {"actions": self._action(message.payload).astype(np.float32)}
        if message.type == "episode_end":
            metrics = message.payload.get("metrics")
            success = isinstance(metrics, dict) and metrics.get("success") is True
            self._session.end(success, self._steps, done=True)
            self._new_episode()
            return None
        if message.type == "error":  # of the client; an answer would be one too many
            return None
        raise UserError(f"Messages of type '{one_line(message.type, 60)}' are not known.")

    def _new_episode(self) -> None:
        self._task = {}
        self._chunk: deque[np.ndarray] = deque()
        self._steps = 0
        self._state: np.ndarray | None = None  # of the last observation, canonical

    def _hello(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        version = payload.get("protocol_version")
        if version != wire.VERSION:
            raise UserError(
                f"The client uses version {version!r:.20} of the protocol; the server uses {wire.VERSION}."
            )
        return {
            "harness_version": f"apt-bench {__version__}",
            "protocol_version": wire.VERSION,
            "model_server": self._spec.name,
            "capabilities": {},
            "observation_params": {
                "send_wrist_image": WRIST in self._spec.cameras,
                "send_state": True,
                "quat_no_antipodal": True,
            },
            "action_spec": ACTION_SPEC,
            "observation_spec": OBSERVATION_SPEC,
        }

    def _action(self, payload: Mapping[str, Any]) -> np.ndarray:
        instruction, sent = payload.get("task_description"), payload.get("images")
        if not isinstance(instruction, str):
            raise UserError("An observation needs a text `task_description`.")
        if "states" not in payload:
            raise UserError("An observation needs `states`; the greeting asks for them (send_state).")
        state = canonical(state_of(payload["states"], "states"), self._state)
        if not self._chunk:
            images = {}
            for camera in self._spec.cameras:
                if not isinstance(sent, dict) or camera not in sent:
                    raise UserError(
                        f"Policy '{self._spec.name}' needs the image '{camera}'; the observation has "
                        f"{', '.join(map(str, sent)) if isinstance(sent, dict) else 'none'}."
                    )
                images[camera] = image_of(sent[camera], camera)
            if not self._session.running:
                self._session.begin(self._said(instruction))
            chunk = self._session.chunk(images, state, instruction, self._steps)
            self._chunk.extend(chunk[: self._spec.execute])
        self._state = state
        self._steps += 1
        row = self._chunk.popleft()
        return towards(row, state) if self._spec.actions == "pose" else clipped(row)

    def _said(self, instruction: str) -> Said:
        def number(key: str) -> int | None:
            value = self._task.get(key)
            return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

        suite = self._task.get("suite")
        return Said(
            instruction,
            suite if isinstance(suite, str) else None,
            number("task_id"),
            number("episode_idx"),
        )
