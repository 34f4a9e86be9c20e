"""What `apt-bench run` was asked for, checked, and the episodes that it means."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from apt_bench.core import provenance
from apt_bench.core.config import Count, Natural, Range, build
from apt_bench.core.errors import UserError
from apt_bench.core.tracking import find_tracker
from apt_bench.runs.records import RunStore
from apt_bench.suites import EpisodeSpec, Suite, load_suite, probes

NUMBERS: dict[str, tuple[Any, str]] = {
    "episodes": (Count | None, "--episodes"),
    "seed": (Natural | None, "--seed"),
    "limit": (Count | None, "--limit"),
    "execute": (Count | None, "--execute-horizon"),
    "attempts": (Annotated[int, Range(least=1, most=1000)], "--attempts"),
    "hang_seconds": (Annotated[float, Range(above=0, most=10**7)], "--hang-timeout"),
    "margin": (Annotated[float, Range(above=0, below=1)] | None, "--margin (a fraction)"),
}
"""What each number may be, and what people call it."""


@dataclass(frozen=True)
class RunOptions:
    """What `apt-bench run` was asked for. None = the suite's or the policy's own. What a list names twice is one.
    Raises UserError for numbers that cannot be meant."""

    suite: str
    policy: str
    policy_args: tuple[str, ...] = ()
    file: str | None = None
    cells: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    episodes: int | None = None
    seed: int | None = None
    limit: int | None = None
    instruction: str | None = None
    probes: tuple[str, ...] = ()
    execute: int | None = None
    workers: str = "auto"
    video: str = "none"
    save_actions: bool = False
    out: Path | None = None
    ray_address: str | None = None
    attempts: int = 3
    hang_seconds: float = 180.0
    unpinned: bool = False
    against: Path | None = None  # stop when decided against this run
    track: str = "none"  # or wandb, trackio
    margin: float | None = None  # fraction; with `against`: equivalence within it decides too

    def __post_init__(self) -> None:
        for name, (kind, where) in NUMBERS.items():
            object.__setattr__(self, name, build(kind, getattr(self, name), where))
        for name in ("cells", "tasks", "probes"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        asked_workers(self.workers)


assert NUMBERS.keys() <= {f.name for f in fields(RunOptions)}


def asked_workers(text: str) -> int | None:
    """`--workers`: a number, or None for `auto`."""
    if text == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise UserError(f"--workers is auto or a number from 0, not '{text}'.")
    return int(text)


def select(options: RunOptions) -> tuple[Suite, tuple[EpisodeSpec, ...]]:
    """The suite and the episodes asked for."""
    suite = load_suite(options.suite)
    find_tracker(options.track)
    provenance.require(suite.name, suite.simulator, options.unpinned)
    specs = suite.select(
        options.cells or None,
        options.tasks or None,
        options.episodes,
        options.seed,
        options.instruction,
        options.limit,
    )
    if not specs:
        raise UserError("None of these tasks is available. `apt-bench ls tasks` says why.")
    if options.against is not None:
        RunStore.open(options.against)
        if options.probes or options.limit is not None:
            raise UserError("--stop-when decided goes with neither --probe nor --limit. Leave them out.")
    if options.probes:
        cells = list(dict.fromkeys(s.key.cell for s in specs))
        every = suite.select(cells, episodes=1, seed=options.seed, instruction=options.instruction)
        specs = probes.expand(specs, options.probes, every)
    return suite, tuple(specs)
