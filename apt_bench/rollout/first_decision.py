"""How much the first chunk changes when only the sentence changes: a language probe without any rollout."""

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
    """One initial state, two sentences. Chunks are compared over their common length, in the units of an action (poses
    as the actions that lead there from the first state): translation and rotation are mean Euclidean distances per
    step, `gripper` the share of steps whose sign differs.
    `relative` = translation distance over the mean length of the default chunk's translations."""

    spec: EpisodeSpec  # under the probe
    translation: float
    rotation: float
    gripper: float
    relative: float

    @property
    def changed(self) -> bool:
        """Whether anything changed at all."""
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
    """One change per probed episode, repeats included. `specs` is what `probes.expand` gives; each scene is set up
    once."""
    asked = guard(policy)
    by_scene: dict[tuple[str, str, int, int], list[EpisodeSpec]] = {}
    for spec in specs:
        by_scene.setdefault((spec.key.cell, spec.key.task, spec.key.init, spec.key.seed), []).append(spec)
    for group in by_scene.values():
        default, *probed = sorted(group, key=lambda s: s.key.prompt != "default")
        seen = env.reset(default, asked.spec.cameras, asked.spec.privileged)

        def decide(spec: EpisodeSpec, seen: Observation = seen) -> np.ndarray:
            """The first chunk of this episode, which starts like every other one of the scene."""
            asked.reset([spec.key.id])
            own = dataclasses.replace(seen, instruction=spec.prompt, episode=spec.key.id)
            (chunk,) = asked.act([with_noise_key(own, spec)])
            if asked.spec.actions == "delta":
                return chunk
            return np.stack([action_towards(row, seen.state) for row in chunk])

        base = decide(default)
        for spec in probed:
            yield chunk_change(spec, base, decide(spec))
