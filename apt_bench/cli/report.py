"""`apt-bench report`: tables, charts and a page from run directories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apt_bench.cli._grid import print_table
from apt_bench.core.errors import UserError
from apt_bench.core.status import status
from apt_bench.core.text import plain_console

if TYPE_CHECKING:
    from apt_bench.analysis.run import Run
    from apt_bench.reporting.table import Table

MISSING = 5
"""Sentences about what is missing that are printed, at most; all of them are in the report."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("report")(report_command)


def report_command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run directories, or folders of them; NAME=DIR gives a run its name in the report."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write. Default: RUN/report for one run, ./report for several."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    published: Annotated[bool, typer.Option(help="Show the paper's rows beside the measured ones.")] = True,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write the figures as PDF.")] = False,
    publish: Annotated[
        Path | None,
        typer.Option(
            help="Write a site of these runs into this folder instead: leaderboards, a page per run, comparisons.",
            metavar="<folder>",
        ),
    ] = None,
) -> None:
    """Write tables, figures and an HTML page that opens offline.

    Without runs, the report shows the results of the paper alone."""
    if publish and out:
        raise UserError("--out and --publish are the folders of two outputs. Give one of them.")
    with status("Reading runs") as step:
        from apt_bench.analysis.run import load_runs
        from apt_bench.reporting.coverage import missing
        from apt_bench.reporting.report import write_report
        from apt_bench.reporting.site import write_site

        loaded = load_runs([argument for run in runs or () for argument in expand(run)])
        if publish:
            page = write_site(loaded, publish, title, published, pdf, step)
            tables = []
        else:
            folder = out or (loaded[0].path / "report" if len(loaded) == 1 else Path("report"))
            page = write_report(loaded, folder, published, title, pdf=pdf, step=step)
            step("Computing the tables")
            tables = _headline_tables(loaded, published)
    console = plain_console()
    for table in tables:
        print_table(table, console)
    for sentence in missing(loaded)[:MISSING]:
        console.print(f"- {sentence}", markup=False, soft_wrap=True)
    console.print(f"{page}", markup=False, soft_wrap=True)


def _headline_tables(runs: Sequence[Run], published: bool) -> list[Table]:
    """The first table of each suite, and that of the real-robot trials."""
    from apt_bench.analysis.run import suite_names
    from apt_bench.reporting.headline_tables import REAL, real_table, suite_tables

    suites, real = suite_names(runs), {suite for _, suite, _ in REAL.values()}
    tables = [suite_tables(runs, suite, published)[0] for suite in suites if suite not in real]
    return tables + ([real_table(runs, published)] if real & set(suites) else [])


def expand(argument: str) -> list[str]:
    """The run directory itself, or the run directories in a folder of them. A run with several names (links) counts
    once, under the first."""
    path = Path(argument)
    try:
        if not path.is_dir() or (path / "protocol.json").is_file():
            return [argument]
        found = {
            p.parent.resolve(): str(p.parent) for p in sorted(path.glob("*/protocol.json"), reverse=True)
        }
    except (OSError, ValueError):  # it vanished, or is no path: reading it raises the error
        return [argument]
    if not found:
        raise UserError(f"{path} holds no run (no protocol.json), nor do the folders in it.")
    return sorted(found.values())
