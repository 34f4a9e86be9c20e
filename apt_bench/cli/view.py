"""`apt-bench view`: the report and every episode of runs, in a browser of this machine, while they run."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from apt_bench.cli.report import expand
from apt_bench.core.signals import stop_on_signals
from apt_bench.core.status import status
from apt_bench.core.temporary_folders import temporary_folder


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("view")(view_command)


def view_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN", help="Run directories, or folders of them; NAME=DIR gives a run its name."
        ),
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen at; 0 means a free one.")
    ] = 8600,
) -> None:
    """Show the report and every episode of runs in a web browser.

    The pages are read-only and served on 127.0.0.1. Episodes of an unfinished run appear as they end. Ctrl-C stops
    the server."""
    from apt_bench.cli._view_pages import Pages
    from apt_bench.reporting.browser import BROWSER
    from apt_bench.reporting.output_folder import PAGE
    from apt_bench.serving.view import PageServer

    arguments = [argument for run in runs for argument in expand(run)]
    server = PageServer(port)
    with temporary_folder("view") as folder:
        with status("Reading the runs"):
            pages = Pages(arguments, folder)
        with stop_on_signals() as stopped:
            server.start(pages.answer)
            print(f"Episodes: {server.address}/{BROWSER}", flush=True)
            print(f"Report:   {server.address}/{PAGE}", flush=True)
            print("Press Ctrl-C to stop.", flush=True)
            while not stopped():
                time.sleep(0.1)
            server.stop()
