"""Convert demonstrations to the network's action codes and back: the upper bound of a trained network.

    python benchmarks/codes.py DEMOS [--limit 20] [--execute 1,3,8] [--stride 1] [--keep-noops]

At every decision, the next 32 targets of the demonstration are encoded as for training, decoded, and returned as the
policy `apt` returns its predictions. The ordinary loop executes them in the demonstration's episode. The command prints
how many episodes succeed, and the mean and 95th percentile of the distance (mm) between the arm and the demonstration's
arm at decisions. It renders no image and uses no network.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.spatial.transform import Rotation

from apt_bench.core.config import load_object
from apt_bench.demos.dataset import Entry, open_demos
from apt_bench.demos.demonstration import make_poses
from apt_bench.envs.base import Env, Observation
from apt_bench.models.action_codes import decode_chunk, encode_chunk
from apt_bench.policies.apt import steps
from apt_bench.policies.base import PolicySpec
from apt_bench.rollout.episode import LocalClient, run_episode
from apt_bench.suites import EpisodeSpec, load_suite
from apt_bench.training.config import DataConfig
from apt_bench.training.samples.episodes import Episode, read_episode

HORIZON = 32


class Demonstrated:
    """Returns the demonstration's next actions."""

    def __init__(self, episode: Episode, execute: int, stride: int) -> None:
        self.spec = PolicySpec(
            "demonstrated", horizon=(HORIZON - 1) * stride + 1, execute=execute, actions="pose"
        )
        self.episode, self.stride = episode, stride
        self.errors: list[float] = []

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Nothing is kept: there is one policy per episode."""

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """The demonstration's next targets, coded and decoded."""
        (obs,) = observations
        now, episode = min(obs.step, len(self.episode) - 1), self.episode
        if obs.step == now:
            self.errors.append(float(np.linalg.norm(obs.state[:3] - episode.ee_pose[now, :3, 3])))
        state = obs.state.astype(np.float64)
        (live,) = make_poses(state[None, :3], Rotation.from_rotvec(state[None, 3:6]).as_matrix())
        frame = torch.from_numpy(live), torch.from_numpy(episode.camera_pose[now, 0])
        pose, opening = map(torch.from_numpy, episode.chunk(now, HORIZON, self.stride))
        poses, openness = decode_chunk(encode_chunk(pose, opening, *frame).float().double(), *frame)
        return [steps(poses.numpy(), openness.numpy(), self.stride)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demos", type=Path)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--execute", default="1,3,8")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--keep-noops", action="store_true")
    args = parser.parse_args()
    entries = open_demos(args.demos).entries
    chosen: Sequence[Entry] = entries[:: -(-len(entries) // args.limit)]
    config = DataConfig(drop_noops=not args.keep_noops)
    envs: dict[str, Env] = {}
    found: dict[int, list[tuple[bool, list[float]]]] = {int(n): [] for n in args.execute.split(",")}
    for entry in chosen:
        assert entry.info.key is not None
        spec = load_suite(entry.info.key.suite).episode(entry.info.key)
        env = envs.setdefault(spec.env, load_object(spec.env)())
        episode = read_episode(entry.load(cameras=()), config)
        spec = dataclasses.replace(spec, max_steps=min(spec.max_steps, 2 * len(episode)))
        for execute, outcomes in found.items():
            policy = Demonstrated(episode, execute, args.stride)
            record = run_episode(env, LocalClient(policy), spec, policy.spec, execute).record
            if record.error:
                raise SystemExit(record.error)
            outcomes.append((record.outcome == "success", policy.errors))
            print(f"{entry.info.episode}, {execute} at once: {record.outcome}", file=sys.stderr, flush=True)
    table = Table("actions per decision", "success", "mean, mm", "95 %, mm")
    for execute, outcomes in found.items():
        errors = 1000 * np.concatenate([e for _, e in outcomes])
        won = sum(success for success, _ in outcomes)
        wide = np.percentile(errors, 95)
        table.add_row(str(execute), f"{won}/{len(outcomes)}", f"{errors.mean():.1f}", f"{wide:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
