"""`apt-bench validate`: is the suite here what the protocol says?"""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from apt_bench.cli import SuiteName, plain_console
from apt_bench.errors import UserError
from apt_bench.reading import load_object
from apt_bench.suites import load_suite


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("validate")(validate_command)


def validate_command(
    suite: SuiteName,
    premises: Annotated[
        bool,
        typer.Option("--premises", help="Also settle every initial state in the simulator (0.2 s each)."),
    ] = False,
) -> None:
    """Check a suite's files, sentences and initial states; name every problem. Exit code 1 if there is an error."""
    chosen = load_suite(suite)
    console = plain_console()
    if chosen.checks is None:
        raise UserError(f"Suite '{chosen.name}' names no checks, so there is nothing more to validate.")
    levels: Counter[str] = Counter()
    for finding in load_object(chosen.checks)(chosen, premises=premises):
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
    console.print(f"{chosen.name}: {counts}", highlight=False)
    raise typer.Exit(int(levels["error"] > 0))
