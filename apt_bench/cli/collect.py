"""`apt-bench collect`: collect demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from apt_bench.cli._options import GroupedCommand, read_words, takes_options, words
from apt_bench.cli._run_summary import summary
from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.text import plain_console, say

OPTIONS = (
    *("suite", "cells", "tasks", "episodes", "seed", "limit"),
    *("policy", "policy_args", "workers", "ray_address", "unpinned"),
)
"""The options of a run that `collect` takes."""

CHANGED: dict[str, dict[str, Any]] = {
    "cells": {"names": ("--cells", "--split")},
    "policy": {"default": "oracle"},
}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("collect", cls=GroupedCommand)(collect_command)


@takes_options(OPTIONS, CHANGED)
def collect_command(
    given: dict[str, Any],
    out: Annotated[Path, typer.Option(help="Folder of the data set.")],
    format: Annotated[str, typer.Option(help="hdf5 (LIBERO's layout) or lerobot (v3).")] = "hdf5",
    cameras: Annotated[str, typer.Option(help="Cameras, separated by commas.")] = "agentview,wrist",
    size: Annotated[int, typer.Option(help="Pixels per side of the images.")] = 256,
    segmentation: Annotated[
        bool, typer.Option("--segmentation", help="Also store which pixel shows which object (hdf5).")
    ] = False,
    failures: Annotated[
        bool, typer.Option("--failures", help="Keep failed episodes too. Each is stored with its success.")
    ] = False,
    image_every: Annotated[
        int, typer.Option(help="Store a new image every N control steps; steps between repeat it (hdf5).")
    ] = 1,
    start_policy: Annotated[
        str,
        typer.Option(
            help="Checkpoint of a trained policy that acts first; only what the expert does is stored."
        ),
    ] = "",
    start_decisions: Annotated[
        int, typer.Option(help="With --start-policy: most decisions of that policy; drawn for each episode.")
    ] = 20,
) -> None:
    """Collect demonstrations.

    Runs the scripted expert and keeps its successes. Rerun the same command to resume, or with a larger --episodes to
    add demonstrations."""
    from apt_bench.core.config import Count, build
    from apt_bench.demos.collect import Format, collect
    from apt_bench.demos.policy_start import PolicyStart
    from apt_bench.policies.registry import find_policy
    from apt_bench.rollout.options import RunOptions

    if format not in get_args(Format):
        raise UserError(f"No format '{format}'. {did_you_mean(format, get_args(Format))}")
    options = RunOptions.of(**{"policy": "oracle"} | read_words(given))
    console = plain_console()
    start = None
    if start_policy:
        most = build(Count, start_decisions, "--start-decisions")
        start = PolicyStart(find_policy("apt", ["execute=8", "sample_steps=10"], start_policy), most)
    found = collect(
        options,
        out,
        console,
        format,  # type: ignore[arg-type]
        words(cameras),
        size,
        segmentation,
        failures,
        image_every,
        start,
    )
    result = found.run
    console.print(summary(result.records, result.missing))
    what = f"episodes ({found.successes} successes)" if failures else "demonstrations"
    console.print(
        f"{found.demonstrations} {what}, {found.steps} steps, {found.megabytes:.1f} MB in {out}",
        soft_wrap=True,
    )
    if result.advice:
        say(result.advice)
    raise typer.Exit(result.exit_code)
