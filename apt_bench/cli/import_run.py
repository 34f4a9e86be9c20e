"""`apt-bench import` and `export`: lerobot's eval_info.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apt_bench.core.errors import UserError
from apt_bench.core.files import reason, write_json
from apt_bench.core.status import status
from apt_bench.core.text import plain_console


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("import")(import_command)
    app.command("export")(export_command)


def import_command(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File eval_info.json of lerobot-eval.")],
    out: Annotated[Path, typer.Option(help="Run directory to write.")],
    policy: Annotated[str, typer.Option(help="Name of the policy that was evaluated.")],
    group: Annotated[
        str | None,
        typer.Option(
            help="What was evaluated, e.g. pusht; needed for files of lerobot before 0.4, which do not name it."
        ),
    ] = None,
) -> None:
    """Read lerobot's eval_info.json into a run directory."""
    from apt_bench.runs.eval_info import import_eval_info

    with status("Reading episodes"):
        count = import_eval_info(path, out, policy, group)
    plain_console().print(f"{out}: {count} episodes", markup=False, soft_wrap=True)


def export_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("eval_info.json"),
) -> None:
    """Write a run as lerobot's eval_info.json."""
    from apt_bench.runs.eval_info import eval_info
    from apt_bench.runs.records import RunStore

    with status("Reading the run"):
        store = RunStore.open(run)
        wall = store.run().get("wall_seconds")
        found = eval_info(store.episodes(), wall if isinstance(wall, int | float) else None)
    try:
        write_json(out, found)
    except OSError as error:
        raise UserError(f"Cannot write {out}: {reason(error)}.") from None
    plain_console().print(f"{out}: {found['overall']['n_episodes']} episodes", markup=False, soft_wrap=True)
