"""Compare the speed of rollouts with vla-eval 0.8.0, per core and side by side.

    bash scripts/interop.sh --collect-only                # installs vla-eval in build/interop, once
    python benchmarks/against_vla_eval.py [--tasks spatial,object,goal,long] [--rounds 3] [--episodes 3]

Both harnesses run the same failing episodes of `libero` with the same fixed actions: 256x256 pixels, two cameras, the
state, software rendering (OSMesa), one process on one core. vla-eval's episode runner gets its actions from the same
process, so no server and no wire count. The harnesses take turns in each round. The first episode of a process belongs
to the start, because it compiles the scene. Two ratios are printed, vla-eval's time by apt-bench's: of the later
episodes, and of whole processes, start included. Both are medians over the rounds, of CPU seconds, which other work on
the machine changes least.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fixed_actions import moves

ROOT = Path(__file__).resolve().parents[1]
VLA_EVAL = ROOT / "build/interop/vla-eval/bin/python"
SUITES = {"spatial": "libero_spatial", "object": "libero_object", "goal": "libero_goal", "long": "libero_10"}
STEPS = {"spatial": 220, "object": 280, "goal": 300, "long": 520}
HORIZONS = (10, 5)
TASK = 0


def timed(episodes: Iterator[int]) -> None:
    """Print as JSON the CPU seconds of each episode that the iterator runs, and the steps of each."""
    found = []
    while True:
        start = time.process_time()
        try:
            steps = next(episodes)
        except StopIteration:
            break
        found.append([time.process_time() - start, steps])
    print("TIMES" + json.dumps(found), flush=True)


def run_apt_bench(cell: str, episodes: int, horizon: int) -> None:
    """Run the episodes with apt-bench, in this process."""
    from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
    from apt_bench.envs.libero import LiberoEnv
    from apt_bench.policies.base import PolicySpec
    from apt_bench.rollout.episode import LocalClient, run_episode
    from apt_bench.suites import load_suite

    actions = moves(STEPS[cell])

    class Fixed:
        spec = PolicySpec("fixed", cameras=(AGENTVIEW, WRIST), horizon=horizon, execute=horizon)

        def reset(self, episodes: Any) -> None:
            pass

        def act(self, observations: list[Observation]) -> list[np.ndarray]:
            return [actions[o.step : o.step + horizon] for o in observations]

    env = LiberoEnv()

    def run() -> Iterator[int]:
        policy: Any = Fixed()
        for spec in load_suite("libero").select([cell], [str(TASK)], episodes):
            record = run_episode(env, LocalClient(policy), spec, policy.spec, horizon).record
            yield record.steps

    timed(run())


def run_vla_eval(cell: str, episodes: int) -> None:
    """Run the episodes with vla-eval, in this process."""
    from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark
    from vla_eval.runners.sync_runner import SyncEpisodeRunner

    actions = moves(STEPS[cell])

    class Connection:
        async def start_episode(self, payload: Any) -> None:
            self._step = -1

        async def act(self, observation: Any) -> dict[str, Any]:
            self._step += 1
            return {"actions": actions[self._step]}

        async def end_episode(self, result: Any) -> None:
            pass

    LIBEROBenchmark.configure_render("cpu")
    benchmark = LIBEROBenchmark(suite=SUITES[cell], send_wrist_image=True, send_state=True)

    def run() -> Iterator[int]:
        task = benchmark.get_tasks()[TASK]
        for i in range(episodes):
            one = SyncEpisodeRunner().run_episode(
                benchmark, {**task, "episode_idx": i}, Connection(), max_steps=STEPS[cell]
            )
            yield int(asyncio.run(one)["steps"])

    timed(run())


def measure(python: Path, *words: str) -> tuple[float, float]:
    """Run this script in a process of its own: CPU seconds of it all, and of an episode after the first."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS"), "1")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [python, __file__, *words],
        env={**os.environ, **threads, "MUJOCO_GL": "osmesa"},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [line for line in done.stdout.splitlines() if line.startswith("TIMES")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    episodes = json.loads(lines[0].removeprefix("TIMES"))
    expected = STEPS[words[2]]
    if any(steps != expected for _, steps in episodes):
        raise SystemExit(f"{' '.join(words)}: not every episode has {expected} steps: {episodes}")
    total = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return total, statistics.mean(seconds for seconds, _ in episodes[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--tasks", default=",".join(SUITES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=3, help="episodes in each process, 2 or more")
    parser.add_argument("--side", nargs=3, metavar=("HARNESS", "CELL", "HORIZON"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        harness, cell, horizon = options.side
        if harness == "vla-eval":
            run_vla_eval(cell, options.episodes)
        else:
            run_apt_bench(cell, options.episodes, int(horizon))
        return
    if not VLA_EVAL.exists():
        raise SystemExit("vla-eval is not installed. Run: bash scripts/interop.sh --collect-only")
    if options.episodes < 2:
        raise SystemExit("--episodes must be 2 or more: the first one of a process belongs to the start.")
    print("| task | horizon | vla-eval, CPU s | apt-bench, CPU s | ratio | ratio with start |")
    print("|---|---:|---:|---:|---:|---:|")
    for cell in options.tasks.split(","):
        rounds = []
        for _ in range(options.rounds):
            times = {
                0: measure(VLA_EVAL, "--side", "vla-eval", cell, "0", "--episodes", str(options.episodes))
            }
            for horizon in HORIZONS:
                words = ("--side", "apt-bench", cell, str(horizon), "--episodes", str(options.episodes))
                times[horizon] = measure(Path(sys.executable), *words)
            rounds.append(times)
        for horizon in HORIZONS:
            theirs, ours = (statistics.median(r[h][1] for r in rounds) for h in (0, horizon))
            ratio, whole = (statistics.median(r[0][k] / r[horizon][k] for r in rounds) for k in (1, 0))
            print(
                f"| {cell} | {horizon} | {theirs:.1f} | {ours:.2f} | {ratio:.1f} | {whole:.1f} |", flush=True
            )


if __name__ == "__main__":
    main()
