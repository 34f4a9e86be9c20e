"""starVLA's policy server, which serves LangForce among others.

Request: both images resized to the training's size (224x224), agentview first, the instruction, no state. Reply: a
chunk of un-normalised actions whose gripper is in [0, 1], 1 = open.
Source: starVLA@0ed0aad, `deployment/model_server/`, `examples/simBenchmarks/LIBERO/eval_files/`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from apt_bench.core.errors import PolicyFault, ServerLost, UserError, did_you_mean
from apt_bench.core.text import one_line
from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.policies.base import Interface, Resources
from apt_bench.policies.remote.links import Address, WebSocketLink
from apt_bench.policies.remote.openpi import answer, greeting
from apt_bench.policies.remote.server import (
    ErrorReply,
    RemotePolicy,
    api_key,
    mapping,
    numbers,
    rows,
    wrong_server,
)
from apt_bench.wire import openpi as wire
from apt_bench.wire.arrays import WireError


class StarVlaPolicy(RemotePolicy):
    """A policy behind starVLA's `server_policy.py`.

    Args:
        server: Address, or several; see `RemotePolicy`. Start the server with `--idle_timeout -1`: by default it exits
            after 30 minutes.
        unnorm_key: Which of the checkpoint's statistics un-normalise the actions; None = the server's default.
        execute: Actions executed of each chunk; None = all of it, as starVLA's evaluation does.
        ddim_steps: Denoising steps of the action head.
        batch: Observations in one request, at most. Above 1, one connection to each server answers all rollout
            workers, so that the model computes their actions together.
    """

    schemes = ("ws", "wss")
    port = 10093
    interface = Interface("none", "unit_open", (224, 224), "bilinear")

    def __init__(
        self,
        server: str | Sequence[str] = "localhost",
        unnorm_key: str | None = None,
        execute: int | None = None,
        ddim_steps: int = 10,
        batch: int = 1,
    ) -> None:
        self._key, self._steps, self._batch = unnorm_key, ddim_steps, batch
        super().__init__(server, 1, 1)
        horizon = int(self.metadata["action_chunk_size"])
        self._horizon, self._execute = horizon, execute or horizon

    @classmethod
    def resources(cls, batch: int = 1, **args: Any) -> Resources:
        """A process of its own for each server where requests are batched."""
        return Resources(placement="worker") if batch == 1 else Resources(max_batch=batch)

    def _resources(self) -> Resources:
        return self.resources(self._batch)

    def _open(self, address: Address) -> WebSocketLink:
        return WebSocketLink(address, api_key())

    def _greet(self) -> Mapping[str, Any]:
        metadata = greeting(self.address, cast(WebSocketLink, self._link), "starVLA")
        horizon = metadata.get("action_chunk_size")
        if isinstance(horizon, bool) or not isinstance(horizon, int) or not 1 <= horizon <= 10_000:
            raise wrong_server(
                self.address, "starVLA", f"its greeting has no usable `action_chunk_size` ({horizon!r:.40})"
            )
        known = metadata.get("available_unnorm_keys")
        names = [str(name) for name in known] if isinstance(known, list) else []
        if self._key is not None and names and self._key not in names:
            raise UserError(
                f"{self.address.url}: the checkpoint has no un-normalisation key '{self._key}'. "
                f"{did_you_mean(self._key, names)} Use --policy-arg unnorm_key=NAME."
            )
        if self._key is None and len(names) > 1 and metadata.get("default_unnorm_key") is None:
            raise UserError(
                f"{self.address.url}: the checkpoint has several un-normalisation keys and no default: "
                f"{', '.join(names)}. Use --policy-arg unnorm_key=NAME."
            )
        size = metadata.get("training_obs_image_size")
        if (
            isinstance(size, list)
            and len(size) == 2
            and all(isinstance(n, int) and 8 <= n <= 4096 for n in size)
        ):
            self.interface = dataclasses.replace(self.interface, image_size=(size[0], size[1]))
        return metadata

    def _weights(self) -> str | None:
        path = self.metadata.get("ckpt_path")
        return path if isinstance(path, str) else None

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """One request for all observations."""
        return self._asked(observations, lambda: self._infer_all(observations))

    def _infer(self, observation: Observation) -> np.ndarray:
        return self._infer_all([observation])[0]

    def _infer_all(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        request = {
            "examples": [
                {"image": [self._image(one, name) for name in (AGENTVIEW, WRIST)], "lang": one.instruction}
                for one in observations
            ],
            "unnorm_key": self._key,
            "do_sample": False,
            "use_ddim": True,
            "num_ddim_steps": self._steps,
        }
        reply = mapping(answer(self.address, self._link.ask(wire.encode(request))), "the reply")
        if reply.get("ok") is not True:
            error = reply.get("error")
            text = error.get("message") if isinstance(error, dict) else error
            lost = (
                ErrorReply if self._batch > 1 else ServerLost
            )  # the batch's others are then sent one by one
            raise lost(f"{self.address.url} failed: {one_line(text, 500)}")
        data = mapping(reply.get("data"), "`data` of the reply")
        if "normalized_actions" in data and "actions" not in data:
            raise UserError(
                f"{self.address.url} answers normalised actions, as starVLA servers did before they un-normalised "
                "them. Update the server."
            )
        if "actions" not in data:
            raise WireError(f"a reply without `actions`; it has {one_line(sorted(map(str, data)), 200)}")
        actions = numbers(data["actions"])
        if actions.ndim != 3 or len(actions) != len(observations):
            raise PolicyFault(
                f"answered actions of shape {actions.shape} instead of ({len(observations)}, n, 7)"
            )
        return [rows(chunk) for chunk in actions]
