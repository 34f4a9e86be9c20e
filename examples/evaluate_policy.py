"""Evaluate a policy of your own and read the episodes.

python examples/evaluate_policy.py
"""

from collections.abc import Sequence

import numpy as np

import apt_bench
from apt_bench import EpisodeSpec, Observation, PolicySpec

GOAL = np.array([0.0, 0.0, 0.15])
"""Point near the table, in metres: the frame of the observed gripper position."""


class Reach:
    """Moves the open gripper to one point, whatever the instruction says."""

    spec = PolicySpec("reach", cameras=(), horizon=5, execute=5)

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Forget what was kept for these episodes. This policy keeps nothing."""

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """One action chunk of shape (5, 7) per observation."""
        return [self._chunk(o.state[:3]) for o in observations]

    def _chunk(self, position: np.ndarray) -> np.ndarray:
        # A position delta of 1 is 0.05 m per control step; -1 opens the gripper.
        step = np.clip((GOAL - position) / 0.05 / self.spec.horizon, -1, 1)
        return np.tile([*step, 0, 0, 0, -1], (self.spec.horizon, 1))


def main() -> None:
    """Run 2 episodes and print what happened in each."""
    run = apt_bench.evaluate(
        Reach(), "rigid_pick_place", ["so", "uo"], tasks=[0], episodes=1, workers=0, progress=False
    )
    episodes = run.episodes
    print(episodes[["cell", "init", "instruction", "outcome_class", "first_contact", "steps"]].to_string())
    print(run.summary()[["cell", "successes", "episodes", "rate", "low", "high"]].to_string())
    print(f"Seconds per episode: {episodes.filter(like='seconds_').sum(axis=1).mean():.1f}")
    print(f"Next: apt-bench report {run.path}")


if __name__ == "__main__":
    main()
