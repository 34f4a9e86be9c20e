"""How much the first action chunk changes when only the instruction changes: a language probe without a rollout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from apt_bench.envs.base import Env, Observation, action_towards
from apt_bench.policies.base import Policy
from apt_bench.policies.guard import guard
from apt_bench.rollout.episode import with_noise_key
from apt_bench.suites import EpisodeSpec

TRANSLATION, ROTATION, GRIPPER = slice(0, 3), slice(3, 6), 6


@dataclass(frozen=True)
class ChunkChange:
    """The difference between the first chunks of one initial state under two instructions.

    Chunks are compared over their common length, in the units of an action. Poses are converted to the actions that
    lead there from the first state.

    Args:
        spec: The episode under the probe.
        translation: Mean Euclidean distance per step.
        rotation: Mean Euclidean distance per step.
        gripper: Share of steps whose sign differs.
        relative: `translation` divided by the mean length of the default chunk's translations.
    """

    spec: EpisodeSpec
    translation: float
    rotation: float
    gripper: float
    relative: float

    @property
    def changed(self) -> bool:
        """Whether the chunks differ at all."""
        return max(self.translation, self.rotation, self.gripper) > 0


def chunk_change(spec: EpisodeSpec, default: np.ndarray, probed: np.ndarray) -> ChunkChange:
    """Compare two chunks (n, 7) and (m, 7)."""
    n = min(len(default), len(probed))
    a, b = default[:n], probed[:n]
    moved = np.linalg.norm(a[:, TRANSLATION] - b[:, TRANSLATION], axis=1).mean()
    scale = np.linalg.norm(a[:, TRANSLATION], axis=1).mean()
    return ChunkChange(
        spec=spec,
        translation=float(moved),
        rotation=float(np.linalg.norm(a[:, ROTATION] - b[:, ROTATION], axis=1).mean()),
        gripper=float((np.sign(a[:, GRIPPER]) != np.sign(b[:, GRIPPER])).mean()),
        relative=float(moved / scale) if scale > 0 else float(moved > 0),
    )


def first_decisions(env: Env, policy: Policy, specs: Sequence[EpisodeSpec]) -> Iterator[ChunkChange]:
    """Yield one change per probed episode, repeats included. Each scene is set up once.

    Args:
        env: The environment.
        policy: The policy.
        specs: Episodes from `probes.expand`.
    """
    guarded = guard(policy)
    by_scene: dict[tuple[str, str, int, int], list[EpisodeSpec]] = {}
    for spec in specs:
        by_scene.setdefault((spec.key.cell, spec.key.task, spec.key.init, spec.key.seed), []).append(spec)
    for group in by_scene.values():
        default, *probed = sorted(group, key=lambda s: s.key.prompt != "default")
        seen = env.reset(default, guarded.spec.cameras, guarded.spec.privileged)

        def decide(spec: EpisodeSpec, seen: Observation = seen) -> np.ndarray:
            """The first chunk of this episode. All episodes of a scene start from the same observation."""
            guarded.reset([spec])
            own = dataclasses.replace(seen, instruction=spec.prompt, episode=spec.key.id)
            (chunk,) = guarded.act([with_noise_key(own, spec)])
            if guarded.spec.actions == "delta":
                return chunk
            return np.stack([action_towards(row, seen.state) for row in chunk])

        base = decide(default)
        for spec in probed:
            yield chunk_change(spec, base, decide(spec))
