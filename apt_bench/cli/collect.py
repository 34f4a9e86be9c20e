"""`apt-bench collect`: make demonstrations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, get_args

import typer

from apt_bench.cli._options import (
    Episodes,
    Limit,
    PolicyArgs,
    RayAddress,
    Seed,
    SuiteName,
    TaskList,
    Unpinned,
    Workers,
    words,
)
from apt_bench.cli.run import summary
from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.text import plain_console, say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("collect")(collect_command)


def collect_command(
    suite: SuiteName,
    out: Annotated[Path, typer.Option(help="Folder of the data set.")],
    cells: Annotated[
        str | None, typer.Option("--cells", "--split", help="Comma list of cells, e.g. train.")
    ] = None,
    tasks: TaskList = None,
    episodes: Episodes = None,
    seed: Seed = None,
    limit: Limit = None,
    format: Annotated[str, typer.Option(help="hdf5 (LIBERO's layout) or lerobot (v3).")] = "hdf5",
    cameras: Annotated[str, typer.Option(help="Comma list of cameras.")] = "agentview,wrist",
    size: Annotated[int, typer.Option(help="Pixels per side of the images.")] = 256,
    segmentation: Annotated[
        bool, typer.Option("--segmentation", help="Also store which pixel shows which object (hdf5).")
    ] = False,
    failures: Annotated[
        bool, typer.Option("--failures", help="Keep every episode, each with its success: rollouts as data.")
    ] = False,
    look_every: Annotated[
        int, typer.Option(help="Control steps from one image to the next; those between repeat it (hdf5).")
    ] = 1,
    policy: Annotated[str, typer.Option(help="Whose episodes they are.")] = "oracle",
    policy_arg: PolicyArgs = None,
    workers: Workers = "auto",
    ray_address: RayAddress = None,
    unpinned: Unpinned = False,
) -> None:
    """Collect demonstrations: run the scripted expert and keep its successes. The same command again goes on where it
    stopped, or adds what a larger --episodes asks for."""
    from apt_bench.demos.collect import Format, collect
    from apt_bench.rollout.runner import RunOptions

    if format not in get_args(Format):
        raise UserError(f"No format '{format}'. {did_you_mean(format, get_args(Format))}")
    options = RunOptions(
        suite=suite,
        policy=policy,
        policy_args=tuple(policy_arg or ()),
        cells=words(cells),
        tasks=words(tasks),
        episodes=episodes,
        seed=seed,
        limit=limit,
        workers=workers,
        ray_address=ray_address,
        unpinned=unpinned,
    )
    console = plain_console()
    found = collect(options, out, console, format, words(cameras), size, segmentation, failures, look_every)  # type: ignore[arg-type]
    result = found.run
    console.print(summary(result.records, Counter(key.cell for key in result.missing)))
    what = f"episodes ({found.successes} successes)" if failures else "demonstrations"
    console.print(
        f"{found.demonstrations} {what}, {found.steps} steps, {found.megabytes:.1f} MB in {out}",
        soft_wrap=True,
    )
    if result.advice:
        say(result.advice)
    raise typer.Exit(result.exit_code)
