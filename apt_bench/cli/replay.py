"""`apt-bench replay`: execute demonstrations again."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from apt_bench.core.config import Count, checked
from apt_bench.core.errors import UserError
from apt_bench.core.machine import PACKAGES
from apt_bench.core.provenance import labels
from apt_bench.core.status import status
from apt_bench.core.text import plain_console


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("replay")(replay_command)


def replay_command(
    demo: Annotated[
        Path,
        typer.Argument(
            metavar="DEMONSTRATIONS", help="HDF5 file, LeRobotDataset folder, or folder of HDF5 files."
        ),
    ],
    index: Annotated[
        int | None,
        typer.Option(help="Only the demonstration with this index. Default: all; with --video, the first."),
    ] = None,
    video: Annotated[Path | None, typer.Option(help="Write a video of it to this mp4 file.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Only this number of demonstrations, spread evenly.", callback=checked(Count, "--limit")
        ),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="YAML file of the suite, if it is not a shipped one.")
    ] = None,
) -> None:
    """Execute the stored actions of demonstrations again, open loop.

    Reports which ones succeed and end in the same state, bit for bit. Exit code 1: one does not."""
    with status("Reading demonstrations"):
        from apt_bench.demos.dataset import open_demos
        from apt_bench.demos.replay import Replayer

        demos = open_demos(demo)
    if index is None and video is not None:
        index = 0
    if index is not None and not -len(demos) <= index < len(demos):
        raise UserError(f"{demo} holds the demonstrations 0..{len(demos) - 1}, not {index}.")
    chosen = [demos.entries[index]] if index is not None else list(demos.entries)
    if limit is not None:
        chosen = chosen[:: -(-len(chosen) // limit)]
    console = plain_console()
    with status("Loading the simulator"):
        replayer = Replayer(suite)
    good = 0
    try:
        for entry in track(chosen, "Replaying", console=console, transient=True, disable=len(chosen) == 1):
            with status("Replaying") if len(chosen) == 1 else nullcontext():
                replay = replayer.replay(entry, video)
            good += replay.reproduced
            if not replay.reproduced or len(chosen) == 1:
                end = "success" if replay.success else "NO success"
                start, state = (
                    "same" if same else "ANOTHER" for same in (replay.same_start, replay.same_end)
                )
                console.print(
                    f"{replay.episode}: {end} after {replay.steps} of {replay.recorded_steps} steps, "
                    f"{start} start, {state} final state",
                    soft_wrap=True,
                )
    finally:
        replayer.close()
    said = chosen[0].info.scene.get("simulator")
    made_with = {k: v for k, v in said.items() if k in PACKAGES} if isinstance(said, dict) else {}
    if good < len(chosen) and (others := {k: v for k, v in labels(made_with).items() if v != made_with[k]}):
        console.print(
            f"Made with {made_with}, here are {others}: other versions end in other states.", soft_wrap=True
        )
    console.print(f"{good}/{len(chosen)} reproduced bit for bit" + (f", filmed in {video}" if video else ""))
    raise typer.Exit(0 if good == len(chosen) else 1)
