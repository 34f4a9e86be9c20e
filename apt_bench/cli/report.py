"""`apt-bench report`: tables, charts and a page from run directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apt_bench.core.errors import UserError
from apt_bench.core.text import file_name, plain_console

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
) -> None:
    """Write tables, figures and an HTML page that opens offline.

    Without runs, the report shows the results of the paper alone."""
    from apt_bench.analysis.run import load_runs
    from apt_bench.reporting.coverage import missing
    from apt_bench.reporting.report import write_report

    loaded = load_runs([argument for run in runs or () for argument in expand(run)])
    folder = out or (loaded[0].path / "report" if len(loaded) == 1 else Path("report"))
    page = write_report(loaded, folder, published, title)
    console = plain_console()
    headlines = {file_name(suite) for run in loaded for suite, _ in run.requested}
    for table in sorted((folder / "tables").glob("*.md")):
        if table.stem in headlines:
            console.print(table.read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    for sentence in missing(loaded)[:MISSING]:
        console.print(f"- {sentence}", markup=False, soft_wrap=True)
    console.print(f"{page}", markup=False, soft_wrap=True)


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
