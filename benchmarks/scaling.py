"""Simulate the schedule of large runs, and measure what the driver does with each record.

    python benchmarks/scaling.py                                  # the table of docs/performance.md
    python benchmarks/scaling.py --driver 100000                  # records per second and memory of the driver

The simulation runs no physics. It assigns episodes with the run's own `Schedule`. A worker keeps the scenes that it
compiled last, as LIBERO's environment does. Costs are options; docs/performance.md names the source of each default.
Two ways to run several policies are compared: one run after the other, and one schedule for all of them, in which a
worker runs the episodes of all policies in a scene before it takes another scene.

The measurement calls the run's own `record_results` and `RunWriter` with copies of a real record.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import io
import os
import random
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from apt_bench.core.tracking import tracking
from apt_bench.policies.registry import find_policy
from apt_bench.rollout import identity
from apt_bench.rollout.engine import Stream
from apt_bench.rollout.plan import Plan
from apt_bench.rollout.record_results import Recorder, record_results
from apt_bench.rollout.schedule import Job, Schedule
from apt_bench.rollout.workers import Result
from apt_bench.rollout.writer import RunWriter
from apt_bench.runs.records import EpisodeRecord, RunStore
from apt_bench.suites import EpisodeSpec, load_suite

CACHED = 3
"""Compiled scenes that a worker keeps."""

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds: of a worker's start, of compiling a scene, of a control step, and of the driver per record."""

    start: float
    compile: float
    step: float
    driver: float


@dataclasses.dataclass
class Total:
    """What a simulated run took; `busy` and `compiled` in seconds of all workers."""

    makespan: float = 0.0
    busy: float = 0.0
    compiled: float = 0.0
    driver: float = 0.0

    def add(self, other: Total) -> None:
        """Add a run that follows this one."""
        for name in ("makespan", "busy", "compiled", "driver"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def simulate(specs: Sequence[EpisodeSpec], workers: int, costs: Costs, seed: int = 0) -> Total:
    """Run the schedule. An episode takes between 30 and 100 % of its step budget."""
    draw = random.Random(seed)
    length = {s.key: s.max_steps * costs.step * draw.uniform(0.3, 1.0) for s in specs}
    schedule, total = Schedule(specs, attempts=1), Total()
    caches: list[OrderedDict[str, None]] = [OrderedDict() for _ in range(workers)]
    driver = costs.start
    ends: list[tuple[float, int]] = []  # when each worker's episode ends

    def assign(worker: int) -> None:
        if (job := schedule.next(worker)) is None:
            return
        spec, cache, seconds = job.spec, caches[worker], length[job.spec.key]
        if spec.group not in cache:
            seconds += costs.compile
            total.compiled += costs.compile
            if len(cache) == CACHED:
                cache.popitem(last=False)
        cache[spec.group] = None
        cache.move_to_end(spec.group)
        total.busy += seconds
        heapq.heappush(ends, (driver + seconds, worker))

    for worker in range(workers):
        assign(worker)
    while ends:
        end, worker = heapq.heappop(ends)
        driver = max(driver, end) + costs.driver  # one record after the other
        total.driver += costs.driver
        assign(worker)
    total.makespan = driver
    return total


def several(specs: Sequence[EpisodeSpec], policies: int) -> list[list[EpisodeSpec]]:
    """The episodes of each policy, under keys of their own."""
    return [
        [dataclasses.replace(s, key=dataclasses.replace(s.key, prompt=f"policy {p}")) for s in specs]
        for p in range(policies)
    ]


def table(args: argparse.Namespace) -> None:
    """Print one line per number of workers and way to run the policies."""
    costs = Costs(args.start, args.compile, args.step, args.driver_ms / 1e3)
    runs = several(load_suite("libero_pro").select(), args.policies)
    together = [spec for group in zip(*runs, strict=True) for spec in group]
    print(
        f"{len(runs[0])} episodes x {args.policies} policies, {len({s.group for s in together})} scenes; {costs}"
    )
    print("| workers | policies | hours | idle % | compiling % | driver busy % | records/s |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for workers in args.workers:
        apart = Total()
        for number, specs in enumerate(runs):
            apart.add(simulate(specs, workers, costs, number))
        for name, total in (("one after the other", apart), ("shared", simulate(together, workers, costs))):
            core = total.makespan * workers
            print(
                f"| {workers} | {name} | {total.makespan / 3600:.2f} | {100 * (1 - total.busy / core):.1f} "
                f"| {100 * total.compiled / core:.1f} | {100 * total.driver / total.makespan:.1f} "
                f"| {len(together) / total.makespan:.1f} |",
                flush=True,
            )


# --- the driver -----------------------------------------------------------------------------------------


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def driver(episodes: int, batch: int) -> None:
    """Record copies of a real record, and print the pace and the memory at every tenth."""
    suite = load_suite("rigid_pick_place")
    (first,) = suite.select(limit=1)
    record = RunStore(ROOT / "results/reference/oracle-rigid_pick_place").episodes()[0]
    shape = dataclasses.replace(record, key=dataclasses.replace(first.key, init=999_999_999)).to_json()
    specs = tuple(
        dataclasses.replace(first, key=dataclasses.replace(first.key, init=i)) for i in range(episodes)
    )
    ref = find_policy("zero")
    spec = ref.declared()
    assert spec is not None
    received = EpisodeRecord.__reduce__(record)[0]  # what unpickling calls

    def stream() -> Stream:
        began = last = (time.perf_counter(), time.process_time())
        for number, each in enumerate(specs, 1):
            copy = received(shape.replace("999999999", str(each.key.init)))
            yield Job(each), Result(copy, more=number % batch != 0 and number != episodes)
            if number % max(1, episodes // 10) == 0:
                now = (time.perf_counter(), time.process_time())
                part = max(1, episodes // 10)
                print(
                    f"{number:9} records: {part / (now[0] - last[0]):7.0f} per second of wall time, "
                    f"{part / (now[1] - last[1]):7.0f} per CPU second, {resident_mb():6.0f} MB",
                    flush=True,
                )
                last = now
        print(f"{episodes / (time.perf_counter() - began[0]):.0f} per second in all")

    with tempfile.TemporaryDirectory(dir=ROOT / "build" if (ROOT / "build").is_dir() else None) as folder:
        out = Path(folder) / "run"
        card = identity.protocol(suite, spec, spec.execute, None, None)
        plan = Plan(suite, specs, ref, spec, spec.execute, card, out, frozenset())
        writer = RunWriter(plan, None)
        with tracking("none", out, {}) as tracker:
            record_results(
                [Recorder(plan, writer, tracker)],
                Schedule([], 1),
                stream(),
                lambda: False,
                Console(file=io.StringIO()),
                1,
            )


def numbers(text: str) -> list[int]:
    """A list of whole numbers that is separated by commas."""
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=numbers, default=[2, 8, 32, 128, 512, 2000])
    parser.add_argument("--policies", type=int, default=7)
    parser.add_argument("--start", type=float, default=20.0, help="seconds until a worker has started")
    parser.add_argument("--compile", type=float, default=6.0, help="seconds to compile a scene")
    parser.add_argument("--step", type=float, default=6.1 / 220, help="seconds per control step")
    parser.add_argument("--driver-ms", type=float, default=0.5, help="milliseconds of the driver per record")
    parser.add_argument("--driver", type=int, metavar="N", help="measure the driver with N records instead")
    parser.add_argument("--batch", type=int, default=100, help="records that arrive together")
    args = parser.parse_args()
    if args.driver:
        driver(args.driver, args.batch)
    else:
        table(args)


if __name__ == "__main__":
    main()
