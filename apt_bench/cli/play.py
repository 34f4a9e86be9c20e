"""`apt-bench play`: type an instruction and watch a policy act, in a browser of this machine."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from apt_bench.cli._options import Checkpoint, PolicyArgs, PolicyName, Servers
from apt_bench.core.errors import UserError
from apt_bench.core.signals import stop_on_signals
from apt_bench.core.status import status


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("play")(play_command)


def play_command(
    policy: PolicyName = "apt",
    checkpoint: Checkpoint = None,
    policy_arg: PolicyArgs = None,
    server: Servers = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen at; 0 means a free one.")
    ] = 8700,
) -> None:
    """Type an instruction and watch a policy act, in a web browser.

    The page is served on 127.0.0.1. One process runs the simulator and the policy; it loads while the page opens.
    Nothing is recorded. Ctrl-C stops the server."""
    with status("Starting the server"):
        from apt_bench.policies.registry import find_policy
        from apt_bench.serving.play import Play
        from apt_bench.serving.view import PageServer

        play = Play(find_policy(policy, policy_arg or (), checkpoint, server or ()))
        pages = PageServer(port)
    with stop_on_signals() as stopped:
        pages.start(play.answer, play.post)
        play.start()
        try:
            print(f"Play: {pages.address}/", flush=True)
            print("Press Ctrl-C to stop.", flush=True)
            while not stopped() and not play.failure:
                time.sleep(0.1)
        finally:
            play.close()
            pages.stop()
    if play.failure:
        raise UserError(play.failure)
