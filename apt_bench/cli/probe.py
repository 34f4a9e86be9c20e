"""`apt-bench probe`: does the first chunk change when the sentence does? Minutes, no rollout."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track
from rich.table import Table

from apt_bench.cli import CellList, PolicyArgs, PolicyName, SuiteName, TaskList, words
from apt_bench.core.config import load_object
from apt_bench.core.errors import UserError
from apt_bench.core.text import plain_console
from apt_bench.policies.registry import find_policy
from apt_bench.probes import PROBES, expand
from apt_bench.rollout.first_decision import ChunkChange, first_decisions
from apt_bench.suites import load_suite


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("probe")(probe_command)


def probe_command(
    suite: SuiteName,
    policy: PolicyName,
    cells: CellList = None,
    tasks: TaskList = None,
    episodes: Annotated[int, typer.Option(help="Initial states per task.")] = 2,
    probe: Annotated[str, typer.Option(help="Comma list of probes.")] = ",".join(PROBES),
    policy_arg: PolicyArgs = None,
    out: Annotated[Path | None, typer.Option(help="Write one row per episode and probe to this CSV.")] = None,
) -> None:
    """Compare the policy's first chunk under other sentences, at the same initial states."""
    chosen = load_suite(suite)
    specs = chosen.select(words(cells) or None, words(tasks) or None, episodes)
    # `swapped` takes its sentences from every task of the cell, not only the chosen ones.
    every = chosen.select(words(cells) or None, episodes=1)
    probed = expand(specs, words(probe), every)
    if out and out.parent != Path() and not out.parent.is_dir():
        raise UserError(f"Folder {out.parent} does not exist.")
    asked = find_policy(policy, policy_arg or ()).load()
    env = load_object(chosen.env)()
    console = plain_console()
    try:
        rows = list(
            track(
                first_decisions(env, asked, probed),
                total=len(probed) - len(specs),
                description="probing",
                console=console,
                disable=not console.is_terminal,
            )
        )
    finally:
        env.close()
    console.print(_table(rows, words(probe)))
    if out:
        with open(out, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["cell", "task", "init", "probe", "sent", "translation", "rotation", "gripper", "relative"]
            )
            for row in rows:
                key = row.spec.key
                numbers = (row.translation, row.rotation, row.gripper, row.relative)
                writer.writerow([key.cell, key.task, key.init, key.prompt, row.spec.prompt, *numbers])


def _table(rows: list[ChunkChange], probes: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (
        "probe",
        "episodes",
        "chunk changed",
        "translation",
        "of its length",
        "rotation",
        "gripper",
    ):
        table.add_column(heading, justify="left" if heading == "probe" else "right")
    for name in probes:
        mine = [r for r in rows if r.spec.key.prompt == name]
        if not mine:
            table.add_row(name, "0", "-", "-", "-", "-", "-")
            continue
        means = [
            sum(getattr(r, field) for r in mine) / len(mine)
            for field in ("changed", "translation", "relative", "rotation", "gripper")
        ]
        changed, translation, relative, rotation, gripper = means
        table.add_row(
            name,
            str(len(mine)),
            f"{changed:.0%}",
            f"{translation:.3f}",
            f"{relative:.0%}",
            f"{rotation:.3f}",
            f"{gripper:.0%}",
        )
    return table
