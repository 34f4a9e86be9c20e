"""The REST servers of OpenVLA and OpenVLA-OFT (`vla-scripts/deploy.py` of each): POST /act.

OpenVLA's server applies no image processing, so this client does all of it: JPEG round trip, Lanczos to 224x224, centre
crop of 90 % of the area. OFT's server does its own. Both answer grippers in [0, 1], 1 = open, and the JSON string
"error" with status 200 where they fail. Sources: openvla@c8f03f4, openvla-oft@213c5ff.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apt_bench.core.errors import PolicyFault, ServerLost
from apt_bench.core.text import one_line
from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.policies.base import Interface
from apt_bench.policies.remote.links import Address, HttpLink
from apt_bench.policies.remote.server import RemotePolicy, api_key, rows
from apt_bench.wire import json_numpy as wire
from apt_bench.wire.arrays import WireError


class _RestPolicy(RemotePolicy):
    schemes = ("http", "https")
    interface = Interface(gripper="unit_open")

    def _open(self, address: Address) -> HttpLink:
        return HttpLink(address, "/act", api_key())

    def _greet(self) -> Mapping[str, Any]:
        """These servers have no greeting. A request with blank images takes its place, so that an unknown
        un-normalisation key, a wrong path or another protocol is an error before the first episode."""
        blank = dict.fromkeys(self.cameras, np.zeros((256, 256, 3), np.uint8))
        try:
            self._fits(self._infer(Observation(blank, np.zeros(8, np.float32), "do nothing")))
        except ServerLost as error:
            raise ServerLost(
                f"{error} (to a blank observation; an unknown un-normalisation key is a frequent cause)"
            ) from error
        return {}

    def _infer(self, observation: Observation) -> np.ndarray:
        reply = wire.decode(self._link.ask(wire.encode(self._request(observation))))
        if isinstance(reply, str):
            raise ServerLost(
                f"{self.address.url} failed: it answered '{one_line(reply, 200)}'; the server's log has the cause"
            )
        if isinstance(reply, list):
            reply = [_decoded(row) if isinstance(row, str) else row for row in reply]
        if not isinstance(reply, np.ndarray | list):
            raise WireError(f"a reply of type {type(reply).__name__}")
        if isinstance(reply, list) and len({np.shape(row) for row in reply}) > 1:
            raise PolicyFault("answered actions of different shapes")
        return rows(reply)

    @abstractmethod
    def _request(self, observation: Observation) -> dict[str, Any]:
        """The body of a request."""


def _decoded(row: str) -> Any:
    """The array in a row that is encoded once more; another text as it is."""
    found = wire.decode(row)
    return found if isinstance(found, np.ndarray | list) else row


class OpenVlaPolicy(_RestPolicy):
    """OpenVLA behind its `deploy.py`: one image, one action.

    Args:
        server: Address, or several; see `RemotePolicy`.
        unnorm_key: Statistics that un-normalise the actions; of a checkpoint finetuned on LIBERO the base suite's name,
            such as `libero_spatial`, also for LIBERO-PRO. None = the server's default, where the checkpoint has one.
        crop: Whether the checkpoint was trained with random crops, as the released ones were; then 90 % of the image's
            area are used.
    """

    port = 8000
    cameras = (AGENTVIEW,)

    def __init__(
        self, server: str | Sequence[str] = "localhost", unnorm_key: str | None = None, crop: bool = True
    ) -> None:
        self._key = unnorm_key
        resize: Any = "jpeg_lanczos_crop" if crop else "jpeg_lanczos"
        self.interface = Interface("none", "unit_open", (224, 224), resize)
        super().__init__(server, 1, 1)

    def _request(self, observation: Observation) -> dict[str, Any]:
        image = self._image(observation, AGENTVIEW)
        request = {"image": image, "instruction": observation.instruction.lower()}
        return request if self._key is None else {**request, "unnorm_key": self._key}


class OpenVlaOftPolicy(_RestPolicy):
    """OpenVLA-OFT behind its `deploy.py`: two images and the state, chunks of 8 actions, all executed.

    Args:
        server: Address, or several; see `RemotePolicy`. Start the server with `num_images_in_input=2`.
        horizon: Actions in one reply.
        execute: Actions executed of each reply.
    """

    port = 8777

    def __init__(self, server: str | Sequence[str] = "localhost", horizon: int = 8, execute: int = 8) -> None:
        super().__init__(server, horizon, execute)

    def _request(self, observation: Observation) -> dict[str, Any]:
        return {
            "full_image": self._image(observation, AGENTVIEW),
            "wrist_image": self._image(observation, WRIST),
            "state": np.asarray(observation.state, dtype=np.float64),
            "instruction": observation.instruction,
        }
