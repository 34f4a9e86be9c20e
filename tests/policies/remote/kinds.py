"""The protocols under test: client, server, name of the baseline, and the recorded request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.policies.registry import find_policy
from apt_bench.policies.remote.groot import GrootPolicy
from apt_bench.policies.remote.openpi import OpenPiPolicy
from apt_bench.policies.remote.rest import OpenVlaOftPolicy, OpenVlaPolicy
from apt_bench.policies.remote.server import RemotePolicy
from apt_bench.policies.remote.starvla import StarVlaPolicy
from apt_bench.policies.remote.vla_eval import VlaEvalPolicy
from apt_bench.suites import EpisodeSpec, load_suite
from tests.policies.remote.groot_server import Groot
from tests.policies.remote.rest_servers import Oft, OpenVla
from tests.policies.remote.servers import Fake, OpenPi, StarVla, VlaEval, card

GOLDEN = Path(__file__).parents[2] / "wire/golden"


@dataclass(frozen=True)
class Kind:
    client: type[RemotePolicy]
    server: type[Fake]
    baseline: str
    request: str  # recorded
    rows: int  # of a chunk
    args: Mapping[str, Any] = field(default_factory=dict)

    def policy(self, server: Fake, **args: Any) -> Any:
        return self.client(server=server.url, **{**self.args, **args})  # type: ignore[call-arg]

    def load(self, *addresses: str, **args: Any) -> Any:
        """As `apt-bench run --policy NAME --server ADDRESS` does."""
        return find_policy(self.baseline, {**self.args, **args}, servers=addresses).load()


KINDS = {
    "openpi": Kind(OpenPiPolicy, OpenPi, "pi05", "openpi/04_request_8x8.bin", 10),
    "starvla": Kind(StarVlaPolicy, StarVla, "langforce", "starvla/04_request_8x8_key.bin", 8),
    "vla-eval": Kind(VlaEvalPolicy, VlaEval, "openvla", "vlaeval/18_observation_raw_16x16.bin", 1),
    "groot": Kind(GrootPolicy, Groot, "gr00t", "groot/07_action_nested_request.bin", 16),
    "openvla": Kind(OpenVlaPolicy, OpenVla, "openvla-rest", "openvla/01_act_8x8_request.http", 1),
    "oft": Kind(OpenVlaOftPolicy, Oft, "oft-rest", "oft/01_act_8x8_request.http", 8),
}

STATE = np.array([-0.2085, 0.01, 1.1733, 3.1403, 0.0008, -0.0892, 0.0387, -0.0386], np.float32)
PROMPT = "Put the Bowl on the plate"


def episodes(cell: str = "spatial_task", task: str = "3", number: int = 2) -> tuple[EpisodeSpec, ...]:
    return tuple(load_suite("libero_pro").select([cell], [task], number))


EPISODE = episodes()[0].id


def observation(**changes: Any) -> Observation:
    images = {AGENTVIEW: card(), WRIST: card(wrist=True)}
    return Observation(
        **{"images": images, "state": STATE, "instruction": PROMPT, "episode": EPISODE, **changes}
    )
