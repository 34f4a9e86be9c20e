"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

SuiteName = Annotated[str, typer.Option(help="Name of a shipped suite, or path of a suite's YAML file.")]
PolicyName = Annotated[str, typer.Option(help="Name of a shipped policy, or my_module:MyPolicy.")]
CellList = Annotated[str | None, typer.Option(help="Comma list of cells. Default: the headline cells.")]
TaskList = Annotated[str | None, typer.Option(help="Comma list of tasks: part of a name, or an index.")]
TrackName = Annotated[str, typer.Option("--track", help="Send metrics to wandb or trackio; or none.")]
Episodes = Annotated[int | None, typer.Option(help="Initial states per task. Default: the suite's.")]
Seed = Annotated[int | None, typer.Option(help="Default: the suite's.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many episodes.")]
Workers = Annotated[str, typer.Option(help="auto, a number, or 0 for this process without Ray.")]
RayAddress = Annotated[
    str | None, typer.Option(help="Join this Ray cluster; folders must be on a disk that all of it sees.")
]
Unpinned = Annotated[
    bool, typer.Option("--unpinned", help="Run on another simulator than the suite's; it marks the result.")
]
PolicyArgs = Annotated[list[str] | None, typer.Option(help="key=value for the policy; may be repeated.")]


def words(text: str | None) -> tuple[str, ...]:
    """A comma list of the command line; what is named twice is one."""
    return tuple(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))
