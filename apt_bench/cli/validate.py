"""`apt-bench validate`: check a suite against the protocol, and whether its tasks can be solved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from apt_bench.cli._options import CellList, SuiteName, TaskList, words
from apt_bench.core.config import load_object
from apt_bench.core.errors import UserError
from apt_bench.core.status import status
from apt_bench.core.text import plain_console
from apt_bench.runs import solvability
from apt_bench.suites import load_suite
from apt_bench.suites.findings import Finding


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("validate")(validate_command)


def validate_command(
    suite: SuiteName,
    premises: Annotated[
        bool,
        typer.Option(
            "--premises",
            help="Also let every initial state settle in the simulator and check it (0.2 s each).",
        ),
    ] = False,
    solvable: Annotated[
        bool,
        typer.Option(
            "--solvable",
            help="Instead of these checks, run every task with the oracle and name those that it never solves.",
        ),
    ] = False,
    cells: CellList = None,
    tasks: TaskList = None,
    episodes: Annotated[
        int | None, typer.Option(help="With --solvable: initial states per task. Default: the protocol's.")
    ] = None,
    workers: Annotated[str, typer.Option(help="With --solvable: auto, a number, or 0 (no Ray).")] = "auto",
    run: Annotated[
        Path | None,
        typer.Option(
            help="With --solvable: run directory of the oracle, new or to resume. Default: results/runs/..."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --solvable: write the evidence here (JSON).")] = None,
) -> None:
    """Check the files, instructions and initial states of a suite.

    Every problem is named. Exit code 1: there is an error."""
    console = plain_console()
    if solvable:
        found = _solvable(suite, words(cells), words(tasks), episodes, workers, run, out, console)
    elif cells or tasks or episodes or run or out:
        raise UserError("--cells, --tasks, --episodes, --run and --out need --solvable.")
    else:
        found = _checks(suite, premises)
    levels: Counter[str] = Counter()
    for finding in _shown(found, suite):
        levels[finding.level] += 1
        place = "/".join(str(p) for p in (finding.cell, finding.task) if p)
        init = "" if finding.init is None else f" init {finding.init}"
        console.print(
            f"{finding.level}: {place}{init}: {finding.kind}: {finding.message}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    counts = ", ".join(f"{n} {level}" for level, n in sorted(levels.items())) or "no findings"
    console.print(f"{suite}: {counts}", highlight=False)
    raise typer.Exit(int(levels["error"] > 0))


def _shown(found: Iterator[Finding], suite: str) -> Iterator[Finding]:
    """The findings. The status line shows while the next one is searched."""
    while True:
        with status(f"Checking {suite}"):
            finding = next(found, None)
        if finding is None:
            return
        yield finding


def _checks(name: str, premises: bool) -> Iterator[Finding]:
    """The suite's own checks, and what is on record about its tasks."""
    suite = load_suite(name)
    if suite.checks is None:
        raise UserError(f"Suite '{suite.name}' names no checks, so there is nothing more to validate.")
    yield from load_object(suite.checks)(suite, premises=premises)
    record = solvability.on_record(suite.name)
    yield from (f for f in solvability.findings(record.values()) if f.level != "ok")
    if record:
        solved = sum(e.solved > 0 for e in record.values())
        yield Finding("ok", "solvable", f"on record: the oracle solves {solved} of {len(record)} tasks")


def _solvable(
    name: str,
    cells: tuple[str, ...],
    tasks: tuple[str, ...],
    episodes: int | None,
    workers: str,
    run_dir: Path | None,
    out: Path | None,
    console: Console,
) -> Iterator[Finding]:
    from apt_bench.rollout.runner import RunOptions, run, select

    options = RunOptions.of(
        suite=name, policy="oracle", cells=cells, tasks=tasks, episodes=episodes, workers=workers, out=run_dir
    )
    suite, specs = select(options)
    result = run(options, console)
    if result.stopped:
        raise UserError(
            f"The oracle's run stopped ({result.message or result.stopped}). Rerun the same command to resume."
        )
    proofs = load_object(suite.proofs)(suite, specs) if suite.proofs else {}
    evidence = solvability.gather(specs, result.records, proofs)
    if out:
        solvability.write(out, suite.name, evidence)
    yield from solvability.findings(evidence)
