"""`apt-bench report`: tables, charts and a page from run directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apt_bench.core.errors import UserError
from apt_bench.core.text import plain_console


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
    """Write tables, figures and a page that opens offline. Without runs: the paper's own results."""
    from apt_bench.reporting.data import load_runs
    from apt_bench.reporting.page import write_report

    paths = [path for run in runs or () for path in expand(run)]
    loaded = load_runs(paths)
    folder = out or (
        Path(paths[0].partition("=")[2] or paths[0]) / "report" if len(paths) == 1 else Path("report")
    )
    page = write_report(loaded, folder, published, title)
    console = plain_console()
    for table in sorted((folder / "tables").glob("*.md")):
        if any(run.protocol.get("suite") == table.stem for run in loaded):
            console.print(table.read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    console.print(f"{page}", markup=False, soft_wrap=True)


def expand(argument: str) -> list[str]:
    """The run directory itself, or the run directories in a folder of them."""
    path = Path(argument)
    if path.is_dir() and not (path / "protocol.json").is_file():
        found = sorted(str(p.parent) for p in path.glob("*/protocol.json"))
        if not found:
            raise UserError(f"{path} holds no run (no protocol.json), nor do the folders in it.")
        return found
    return [argument]
