"""Measure the cost of Ray in an episode, and the speed-up by a second worker.

It uses LIBERO with both cameras and a policy that answers at once from an actor of its own. This is the most expensive
case, because every observation is sent to another process.

    python benchmarks/ray_share.py [--episodes 6] [--horizon 10] [--workers 2]

Run it on an idle machine. Episodes that compile a model or fill a cache (each worker's first) are left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from apt_bench.envs.base import ACTION_DIM, AGENTVIEW, WRIST, Observation
from apt_bench.policies.base import PolicySpec
from apt_bench.policies.registry import PolicyRef
from apt_bench.rollout.cluster import ray_session
from apt_bench.rollout.engine import PolicyActor, RayPool, run_local
from apt_bench.rollout.schedule import Schedule
from apt_bench.rollout.workers import Settings
from apt_bench.runs.records import EpisodeRecord
from apt_bench.suites import EpisodeSpec, load_suite

ROOT = str(Path(__file__).resolve().parents[1])


class InstantPolicy:
    """Gets both images and does not move, so that every episode takes its whole budget."""

    spec = PolicySpec("instant", cameras=(AGENTVIEW, WRIST), horizon=10)

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Nothing is kept between decisions."""

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """Zero actions."""
        return [np.zeros((10, ACTION_DIM)) for _ in observations]


REF = PolicyRef("instant", "benchmarks.ray_share:InstantPolicy")
Ended = list[tuple[float, EpisodeRecord]]


def roll(specs: list[EpisodeSpec], horizon: int, workers: int) -> Ended:
    """The records and the time at which each ended; 0 workers = this process."""
    settings = Settings(REF, InstantPolicy.spec, execute=horizon, env=specs[0].env, path=ROOT)
    schedule, never = Schedule(specs, attempts=1), lambda: False
    if workers == 0:
        return _drain(run_local(schedule, [settings], never))
    with ray_session(None, workers, len(specs)):
        actor = PolicyActor(REF, workers, ROOT)
        return _drain(RayPool(workers, [settings], [[actor]], hang_timeout=600).stream(schedule, never))


def _drain(stream) -> Ended:  # type: ignore[no-untyped-def]
    ended = []
    for job, result in stream:
        if result.record is None:
            sys.exit(f"{job.spec.key.id}: {result.fatal or result.error}")
        ended.append((time.perf_counter(), result.record))
    return ended


def warm(ended: Ended, workers: int) -> tuple[float, list[EpisodeRecord]]:
    """Seconds of wall time per episode, and the records, without each worker's first."""
    first = ended[max(workers, 1) - 1][0]
    rest = ended[max(workers, 1) :]
    return (rest[-1][0] - first) / len(rest), [record for _, record in rest]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=6, help="per worker, besides the first")
    parser.add_argument("--horizon", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, ROOT)
    many = load_suite("libero_pro").select(cells=["spatial_pos"], tasks=["0"], episodes=50)
    table = Table(box=None, header_style="bold")
    for heading in (
        "where",
        "s per episode",
        "reset",
        "physics",
        "render",
        "policy",
        "Ray per decision",
        "between episodes",
        "Ray's share",
    ):
        table.add_column(heading, justify="left" if heading == "where" else "right")
    rates = {}
    for workers in (0, 1, args.workers):
        wall, records = warm(
            roll(many[: (args.episodes + 1) * max(1, workers)], args.horizon, workers), workers
        )
        rates[workers] = 1 / wall
        parts = {p: statistics.mean(r.seconds[p] for r in records) for p in records[0].seconds}
        own = sum(parts.values())
        gap = (
            wall * max(1, workers) - own
        )  # of one worker: dispatch, records, and the queue of a loaded machine
        decision = parts["wait"] / statistics.mean(r.decisions for r in records)
        table.add_row(
            f"{workers} workers" if workers else "this process",
            f"{wall * max(1, workers):.2f}",
            *(f"{parts[p]:.2f}" for p in ("reset", "physics", "render", "policy")),
            f"{1e3 * decision:.1f} ms",
            f"{1e3 * gap:.0f} ms",
            f"{100 * (parts['wait'] + gap) / (own + gap):.1f} %",
        )
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"spatial_pos, task 0, execute horizon {args.horizon}, both cameras, times of one worker")
    console.print(table)
    console.print(
        f"{args.workers} workers end {rates[args.workers] / rates[1]:.2f}x as many episodes per minute as 1"
        f" ({60 * rates[args.workers]:.1f} against {60 * rates[1]:.1f})"
    )


if __name__ == "__main__":
    main()
