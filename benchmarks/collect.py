"""Measure the cost of a demonstration: demonstrations per minute, control steps per second, time per part, size.

python benchmarks/collect.py --suite rigid_pick_place --cells so --episodes 5 --workers 2
python benchmarks/collect.py --suite libero --cells spatial --tasks 0,1 --episodes 1
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from apt_bench.core.machine import cores, cpu_name, free_memory_gb
from apt_bench.demos.collect import collect, megabytes
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.lerobot_writer import LeRobotWriter
from apt_bench.demos.replay import Replayer
from apt_bench.envs import rendering
from apt_bench.rollout.cluster import auto_workers
from apt_bench.rollout.runner import RunOptions

PARTS = ("reset", "physics", "render", "policy", "write")


def measure(options: RunOptions, cameras: tuple[str, ...], size: int, out: Path, console: Console) -> dict:
    """Collect demonstrations, write them again as LeRobotDataset, read both, replay all."""
    began, cpu = time.perf_counter(), time.process_time()
    found = collect(options, out / "hdf5", console, cameras=cameras, size=size)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    records = found.run.records
    n, steps = max(1, found.demonstrations), sum(r.steps for r in records)
    seconds = {part: sum(r.seconds.get(part, 0.0) for r in records) for part in PARTS}
    workers = int(options.workers) if options.workers != "auto" else auto_workers(cores(), free_memory_gb())
    busy = sum(seconds.values())
    demos = open_demos(out / "hdf5")

    began = time.perf_counter()
    writer = LeRobotWriter(out / "lerobot")
    for demo in demos:
        writer.add(demo)
    writer.close()
    converted = time.perf_counter() - began
    reading = {}
    for kind in ("hdf5", "lerobot"):
        began = time.perf_counter()
        for demo in open_demos(out / kind):
            assert demo.images
        reading[kind] = found.steps / (time.perf_counter() - began)
    replayer = Replayer()
    reproduced = sum(replayer.replay(e).reproduced for e in demos.entries)
    replayer.close()
    return {
        "suite": options.suite,
        "cpu": cpu_name(),
        "renderer": rendering.describe().renderer,
        "workers": workers,
        "cameras": list(cameras),
        "size": size,
        "episodes": len(records),
        "demonstrations": found.demonstrations,
        "steps per demonstration": round(found.steps / n, 1),
        "wall seconds": round(wall, 1),
        "demonstrations per minute, wall": round(60 * n / wall, 2),
        "demonstrations per minute, once workers run": round(60 * n * max(1, workers) / busy, 2),
        "control steps per second, once workers run": round(steps * max(1, workers) / busy, 1),
        **({"CPU ms per step, total": round(1000 * cpu / max(1, steps), 2)} if not workers else {}),
        **{f"{part}, ms per step": round(1000 * seconds[part] / steps, 2) for part in PARTS},
        "ms per image": round(1000 * seconds["render"] / max(1, steps * len(cameras)), 2),
        "HDF5, MB per demonstration": round(found.megabytes / n, 3),
        "LeRobotDataset, MB per demonstration": round(megabytes(out / "lerobot") / n, 3),
        "LeRobotDataset, seconds to write one": round(converted / n, 2),
        "HDF5, steps read per second": round(reading["hdf5"]),
        "LeRobotDataset, steps read per second": round(reading["lerobot"]),
        "replays that reproduce bit for bit": f"{reproduced}/{len(demos)}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="rigid_pick_place")
    parser.add_argument("--cells", default="so", help="comma list")
    parser.add_argument("--tasks", default="", help="comma list")
    parser.add_argument("--episodes", type=int, default=5, help="initial states per task")
    parser.add_argument("--cameras", default="agentview,wrist")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    options = RunOptions.of(
        suite=args.suite,
        policy="oracle",
        cells=tuple(filter(None, args.cells.split(","))),
        tasks=tuple(filter(None, args.tasks.split(","))),
        episodes=args.episodes,
        workers=args.workers,
    )
    with tempfile.TemporaryDirectory(prefix="apt-bench-collect-") as folder:
        cameras = tuple(filter(None, args.cameras.split(",")))
        figures = measure(options, cameras, args.size, Path(folder), Console(stderr=True))
    table = Table(box=None, show_header=False)
    for name, value in figures.items():
        table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value))
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
