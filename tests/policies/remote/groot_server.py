"""A small GR00T server, see `servers.py`."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import zmq

from apt_bench.wire import groot
from tests.policies.remote.servers import Fake, Seen, Wrong, expect, expect_array

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
