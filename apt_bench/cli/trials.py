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
    group = typer.Typer(
        no_args_is_help=True, help="Real-robot trials: a blinded sheet, and its way into the records."
    )
    group.command("new")(new_command)
    group.command("import")(import_command)
    app.add_typer(group, name="trials")


def new_command(
    plan: Annotated[Path, typer.Argument(help="CSV of what to try: cell, task, instruction, trials.")],
    policies: Annotated[str, typer.Option(help="Comma list of the policies to try.")],
    out: Annotated[Path, typer.Option(help="Sheet to write; the key goes beside it as NAME.key.csv.")] = Path(
        "sheet.csv"
    ),
    suite: Annotated[str, typer.Option(help="Suite the records will name.")] = "real_pick_place",
    scores: Annotated[str, typer.Option(help="Comma list of stages to score 0 / 1, e.g. t1,t2,t1_t2.")] = "",
    seed: Annotated[int, typer.Option(help="Of the random order.", callback=checked(Natural, "--seed"))] = 0,
) -> None:
    """Write a trial sheet in random order, policies hidden behind codes, and the key to the codes."""
    from apt_bench.runs.robot_trials import SPREADSHEET_DIGITS, new_sheet, read_plan, write_sheets

    sheet, key = new_sheet(read_plan(plan), words(policies), suite, seed, words(scores))
    hidden = write_sheets(out, sheet, key)
    if len(str(seed)) > SPREADSHEET_DIGITS:
        say(
            f"A spreadsheet rounds the seed {seed} to {SPREADSHEET_DIGITS} digits. Fill the sheet in with a text "
            "editor, or take a shorter seed."
        )
    _print(
        f"{out}: {len(sheet)} trials. {hidden} says which policy is behind each code: keep it from who judges."
    )


def import_command(
    sheet: Annotated[Path, typer.Argument(help="The filled sheet.")],
    out: Annotated[Path, typer.Option(help="Folder for one run directory per policy.")],
    key: Annotated[
        Path | None, typer.Option(help="Key of the codes. Default: NAME.key.csv beside the sheet.")
    ] = None,
) -> None:
    """Read a filled sheet into run directories, for `report`, `compare` and `check`."""
    from apt_bench.analysis.run import load_run
    from apt_bench.runs.robot_trials import import_sheet, key_path

    for path in import_sheet(sheet, key or key_path(sheet), out):
        run = load_run(path)
        _print(f"{path}: {int(run.frame.finished.sum())} of {sum(run.requested.values())} trials")


def _print(text: str) -> None:
    plain_console().print(text, markup=False, soft_wrap=True)
