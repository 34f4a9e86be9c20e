"""The networks that ship with the package, as one policy: each episode gets the network that fits its scene.

`--policy apt` without a checkpoint means this policy. There is one small network for the tabletop suites and one for
each LIBERO suite that has one, as the baselines of the paper have one checkpoint per LIBERO suite.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apt_bench.core.errors import UserError
from apt_bench.envs.base import Observation
from apt_bench.policies.base import PolicySpec, Provenance
from apt_bench.suites import EpisodeSpec
from apt_bench.suites.suite import ENVIRONMENTS

if TYPE_CHECKING:
    from apt_bench.policies.apt import AptPolicy  # imports torch; methods import it when they need it

TABLETOP = "tabletop"

NETWORKS: Mapping[str, str] = {
    TABLETOP: "mini",
    "libero_object": "libero_object",
    "libero_spatial": "libero_spatial",
    "libero_goal": "libero_goal",
    "libero_10": "libero_long",
}
"""Scene -> name of the shipped checkpoint. A scene is `tabletop`, or the LIBERO benchmark that the task belongs to or
was made from."""


class ShippedPolicy:
    """The shipped networks. One is loaded when the first episode needs it.

    Args:
        device: See `AptPolicy`.
        execute: Execute horizon.
        sample_steps: Denoising steps per decision.
        seed: Seed of the noise.
        max_batch: See `AptPolicy`.

    Raises:
        UserError: An argument is outside its range.
    """

    def __init__(
        self,
        *,
        device: str | None = None,
        execute: int = 8,
        sample_steps: int = 10,
        seed: int = 0,
        max_batch: int | None = None,
    ) -> None:
        from apt_bench.policies.apt import AptPolicy

        self._make = functools.partial(
            AptPolicy,
            device=device,
            execute=execute,
            sample_steps=sample_steps,
            seed=seed,
            max_batch=max_batch,
        )
        self._networks: dict[str, AptPolicy] = {}
        self._scenes: dict[str, str] = {}
        spec = self._network(TABLETOP).spec
        parameters = sum(p.numel() for p in self._network(TABLETOP).model.parameters())
        self.spec = PolicySpec(
            name="apt",
            cameras=spec.cameras,
            horizon=spec.horizon,
            execute=spec.execute,
            actions=spec.actions,
            resources=spec.resources,
            provenance=Provenance(
                weights="shipped",
                weights_sha256=self.digest(),
                about={**spec.provenance.about, "shipped": f"{parameters / 1e6:.1f} M parameters"},
            ),
        )

    @staticmethod
    def digest(**others: object) -> str:
        """Hash of the weights of every shipped network."""
        from apt_bench.models import checkpoint

        together = "".join(checkpoint.sha256(name) for name in NETWORKS.values())
        return hashlib.sha256(together.encode()).hexdigest()

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Load the networks of these episodes.

        Raises:
            UserError: Nothing ships for the scene of one of them.
        """
        for episode in episodes:
            scene = scene_of(episode.env, episode.args)
            if scene not in NETWORKS:
                raise UserError(
                    f"no network ships for {scene} (suite '{episode.key.suite}', cell '{episode.key.cell}'); one ships "
                    f"for {', '.join(NETWORKS)}. Run other cells (--cells), give a checkpoint (--checkpoint FOLDER, "
                    "ORG/REPO or ckpt_N.pt), or train one (docs/training.md)."
                )
            self._scenes[episode.id] = scene
            self._network(scene).reset([episode])

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """One chunk of poses per observation, see `AptPolicy.act`."""
        chunks: dict[int, np.ndarray] = {}
        of_scene: dict[str, list[int]] = {}
        for index, observation in enumerate(observations):
            of_scene.setdefault(self._scenes[observation.episode], []).append(index)
        for scene, indices in of_scene.items():
            answers = self._network(scene).act([observations[i] for i in indices])
            chunks |= dict(zip(indices, answers, strict=True))
        return [chunks[i] for i in range(len(observations))]

    def finish(self, episode: EpisodeSpec, outcome: Any) -> None:
        """Forget the episode."""
        self._scenes.pop(episode.id, None)

    def _network(self, scene: str) -> AptPolicy:
        if scene not in self._networks:
            self._networks[scene] = self._make(NETWORKS[scene])
        return self._networks[scene]


def scene_of(env: str, args: Mapping[str, Any]) -> str:
    """The scene of an episode, see `NETWORKS`."""
    while isinstance(args.get("args"), Mapping):  # an environment around another one
        env, args = args["env"], args["args"]
    if env == ENVIRONMENTS["tabletop"]:
        return TABLETOP
    return str(args.get("base", env))
