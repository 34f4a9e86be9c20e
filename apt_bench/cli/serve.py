"""`apt-bench serve`: a policy for the clients of another harness."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer

from apt_bench.cli._completion import COMPLETE
from apt_bench.cli._options import Checkpoint, PolicyArgs, PolicyName
from apt_bench.core.errors import UserError
from apt_bench.core.signals import stop_on_signals
from apt_bench.core.status import status
from apt_bench.core.text import say


class ProtocolName(StrEnum):
    """Values of `--protocol`."""

    OPENPI = "openpi"
    VLA_EVAL = "vla-eval"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("serve")(serve_command)


def serve_command(
    policy: PolicyName,
    protocol: Annotated[ProtocolName, typer.Option(help="Protocol of the clients.")],
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="File that the policy executes: --policy replay FILE."),
    ] = None,
    checkpoint: Checkpoint = None,
    policy_arg: PolicyArgs = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Suite of clients that do not name theirs. A policy that needs camera calibration needs it.",
            autocompletion=COMPLETE["suite"],
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 means every interface.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen at; 0 means a free one.")
    ] = 8000,
) -> None:
    """Serve a policy to other harnesses.

    Ctrl-C and SIGTERM stop the server after the replies that are being computed. The exit code is then 0."""
    from apt_bench.policies.registry import find_policy, load_baseline
    from apt_bench.rollout.progress import loading
    from apt_bench.serving.episodes import Episodes
    from apt_bench.serving.listener import EVERYWHERE, Listener
    from apt_bench.serving.openpi import OpenPiSession
    from apt_bench.serving.session import ServedPolicy, check_servable
    from apt_bench.serving.vla_eval import VlaEvalSession

    known = None if ":" in policy else load_baseline(policy)
    if known and known.llm:
        raise UserError(f"Policy '{policy}' runs beside its environment and cannot be served.")
    if known and known.server is not None:
        raise UserError(f"Policy '{policy}' has a server of its own. Connect the clients to that server.")
    if file is not None and checkpoint is not None:
        raise UserError("FILE and --checkpoint are the same. Give one of them.")
    ref = find_policy(policy, policy_arg or (), file or checkpoint)
    if (declared := ref.declared()) is not None:
        check_servable(ref.named(declared))
    kind: type[OpenPiSession] | type[VlaEvalSession]
    kind = OpenPiSession if protocol is ProtocolName.OPENPI else VlaEvalSession
    with status(loading(ref)):
        served = ServedPolicy(ref.load(), Episodes(suite))
    with stop_on_signals() as stopped:
        listener = Listener(lambda: kind(served), kind.health, host, port)
        if host in EVERYWHERE:
            say(
                f"Listening at every network interface: whoever reaches port {listener.port} can use the policy. "
                "There is no password."
            )
        shown = f"[{host}]" if ":" in host else host
        print(f"Serving policy '{served.spec.name}' ({protocol}) at ws://{shown}:{listener.port}", flush=True)
        listener.start()
        while not stopped():
            time.sleep(0.1)
        listener.stop()
