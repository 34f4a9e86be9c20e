"""LIBERO's own tasks for demonstrations: the initial states that evaluation leaves out, with random pushes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from apt_bench.core.config import Natural, Range, build
from apt_bench.envs.libero import tasks
from apt_bench.suites import Cell, Task


@dataclass(frozen=True)
class _Args:
    """Arguments of a cell.

    Attributes:
        benchmark: LIBERO benchmark.
        first_init: Initial state of episode 0. The states before it are for evaluation.
        disturbance: Strength of random pushes against the arm (`envs.disturbance`).
        draft: Render images without multisampling.
    """

    benchmark: str
    first_init: Natural = 0
    disturbance: Annotated[float, Range(least=0, most=2)] = 0.0
    draft: bool = False


def cell_tasks(cell: Cell) -> list[Task]:
    """Return the base tasks of a cell, in LIBERO's order. Raises UserError for wrong arguments."""
    args: _Args = build(_Args, cell.args, f"cell '{cell.name}': args")
    base = dataclasses.replace(cell, args={"benchmark": args.benchmark})
    extra = {"first_init": args.first_init, "disturbance": args.disturbance, "draft": args.draft}
    return [
        dataclasses.replace(
            task,
            args={**task.args, **extra},
            inits=max(0, task.inits - args.first_init),
            flags={
                i if i is None else i - args.first_init: flags
                for i, flags in task.flags.items()
                if i is None or i >= args.first_init
            },
        )
        for task in tasks.cell_tasks(base)
    ]
