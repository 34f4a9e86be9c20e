"""`apt-bench trials`: real-robot trials, from a blinded sheet to records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apt_bench.cli._options import words
from apt_bench.core.config import Natural, checked
from apt_bench.core.text import plain_console, say


def register(app: typer.Typer) -> None:
    """Add `trials new` and `trials import`."""
    group = typer.Typer(no_args_is_help=True, help="Write and read blinded sheets of real-robot trials.")
    group.command("new")(new_command)
    group.command("import")(import_command)
    app.add_typer(group, name="trials")


def new_command(
    plan: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN", help="CSV file of the plan, with the columns cell, task, instruction, trials."
        ),
    ],
    policies: Annotated[str, typer.Option(help="Policies to try, separated by commas.")],
    out: Annotated[
        Path, typer.Option(help="Sheet to write. The key is written beside it, as NAME.key.csv.")
    ] = Path("sheet.csv"),
    suite: Annotated[str, typer.Option(help="Name of the suite in the records.")] = "real_pick_place",
    scores: Annotated[
        str, typer.Option(help="Stages to score 0 or 1, separated by commas, e.g. t1,t2,t1_t2.")
    ] = "",
    seed: Annotated[
        int, typer.Option(help="Seed of the random order.", callback=checked(Natural, "--seed"))
    ] = 0,
) -> None:
    """Write a blinded trial sheet and its key.

    The trials are in random order. Codes replace the policies' names; the key lists them."""
    from apt_bench.runs.robot_trials import SPREADSHEET_DIGITS, new_sheet, read_plan, write_sheets

    sheet, key = new_sheet(read_plan(plan), words(policies), suite, seed, words(scores))
    hidden = write_sheets(out, sheet, key)
    if len(str(seed)) > SPREADSHEET_DIGITS:
        say(
            f"A spreadsheet rounds the seed {seed} to {SPREADSHEET_DIGITS} digits. Fill the sheet in with a text "
            "editor, or take a shorter seed."
        )
    _print(
        f"{out}: {len(sheet)} trials. {hidden} lists the policy of each code: keep it from the person who judges."
    )


def import_command(
    sheet: Annotated[Path, typer.Argument(metavar="SHEET", help="The filled sheet.")],
    out: Annotated[Path, typer.Option(help="Folder for one run directory per policy.")],
    key: Annotated[
        Path | None, typer.Option(help="Key of the codes. Default: NAME.key.csv beside the sheet.")
    ] = None,
) -> None:
    """Read a filled sheet into run directories.

    `report`, `compare` and `check` take these directories."""
    from apt_bench.analysis.run import load_run
    from apt_bench.runs.robot_trials import import_sheet, key_path

    for path in import_sheet(sheet, key or key_path(sheet), out):
        run = load_run(path)
        _print(f"{path}: {int(run.frame.finished.sum())} of {sum(run.requested.values())} trials")


def _print(text: str) -> None:
    plain_console().print(text, markup=False, soft_wrap=True)
