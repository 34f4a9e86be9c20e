"""`apt-bench probe`: whether the first action chunk changes with the instruction. It takes minutes; no rollout."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from apt_bench.cli._grid import Grid
from apt_bench.cli._options import (
    Cassette,
    CellList,
    Checkpoint,
    Instruction,
    Instructions,
    LlmModel,
    MaxCost,
    PolicyArgs,
    PolicyName,
    Servers,
    SuiteName,
    TaskList,
    Unpinned,
    words,
)
from apt_bench.core import provenance
from apt_bench.core.config import load_object
from apt_bench.core.errors import PolicyFault, ServerLost, UserError
from apt_bench.core.files import reason, require_writable, write_whole
from apt_bench.core.status import status
from apt_bench.core.text import csv_cell, plain_console, say
from apt_bench.policies.registry import find_policy
from apt_bench.rollout.first_decision import ChunkChange, first_decisions
from apt_bench.rollout.progress import loading
from apt_bench.suites import load_suite
from apt_bench.suites.custom_instructions import custom_instructions
from apt_bench.suites.probes import CUSTOM, PROBES, REPEAT, check_names, expand

SIZES = ("translation", "rotation", "gripper", "relative")
"""Sizes of a ChunkChange."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("probe")(probe_command)


def probe_command(
    suite: SuiteName,
    policy: PolicyName,
    cells: CellList = None,
    tasks: TaskList = None,
    episodes: Annotated[int, typer.Option(help="Initial states per task.")] = 2,
    probe: Annotated[
        str, typer.Option(help="Language probes, separated by commas.", show_default="all")
    ] = ",".join(PROBES),
    instruction: Instruction = None,
    instructions: Instructions = None,
    policy_arg: PolicyArgs = None,
    checkpoint: Checkpoint = None,
    server: Servers = None,
    llm_model: LlmModel = None,
    max_cost: MaxCost = None,
    cassette: Cassette = None,
    out: Annotated[
        Path | None, typer.Option(help="Write one row per episode and probe to this CSV file.")
    ] = None,
    unpinned: Unpinned = False,
) -> None:
    """Compare first action chunks under other instructions.

    The initial states are the same. The probe `repeat` sends the same instruction again and gives the noise floor."""
    check_names(words(probe))
    own = custom_instructions(instruction, instructions)
    if out and not out.parent.is_dir():
        raise UserError(f"Folder {out.parent} does not exist.")
    if out:
        require_writable(out)
    chosen = load_suite(suite)
    for mark in provenance.require(chosen.name, chosen.simulator, unpinned):
        say(f"Not the suite's own simulator (--unpinned): it is {mark}.")
    with status("Selecting episodes"):
        specs = chosen.select(words(cells) or None, words(tasks) or None, episodes)
        # `swapped` takes its sentences from every task of the cell, not only the chosen ones.
        every = chosen.select(words(cells) or None, episodes=1)
        probed = expand(specs, words(probe), every, own.sentences(chosen, specs) if own else {})
    llm = {"model": llm_model, "max_cost": max_cost, "cassette": cassette}
    ref = find_policy(policy, policy_arg or (), checkpoint, server or (), llm)
    with status(loading(ref)) as step:
        asked = ref.load()
        step("Loading the simulator")
        env = load_object(chosen.env)()
    console = plain_console()
    try:
        rows = list(
            track(
                first_decisions(env, asked, probed),
                total=len(probed) - len(specs),
                description="Asking the policy",
                console=console,
                disable=not console.is_terminal,
            )
        )
    except PolicyFault as fault:
        raise UserError(f"Policy '{asked.spec.name}' {fault}.") from fault
    except ServerLost as lost:
        raise UserError(f"The server of policy '{asked.spec.name}' is gone: {lost}. Try again.") from lost
    finally:
        env.close()
    names = [REPEAT, *(name for name in words(probe) if name != REPEAT), *([CUSTOM] if own else [])]
    console.print(_table(rows, names))
    console.print(noise_floor(rows), soft_wrap=True)
    if out:
        try:
            write_whole(out, _csv(rows).encode())
        except OSError as error:  # a disk that is full by now
            raise UserError(f"Cannot write {out}: {reason(error)}.") from None


def _csv(rows: Sequence[ChunkChange]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["cell", "task", "init", "probe", "sent", *SIZES])
    for row in rows:
        key = row.spec.key
        words_of = (key.cell, key.task, key.init, key.prompt, row.spec.prompt)
        writer.writerow(map(csv_cell, (*words_of, *(getattr(row, size) for size in SIZES))))
    return file.getvalue()


def noise_floor(rows: Sequence[ChunkChange]) -> str:
    """A sentence with the result of the repeats."""
    again = [row for row in rows if row.spec.key.prompt == REPEAT]
    if not again:
        return "No probe changes an instruction here; nothing was measured."
    changed = sum(row.changed for row in again) / len(again)
    return (
        f"A repeat under the same instruction changed the chunk in {changed:.0%} of {len(again)} episodes. "
        "Compare the probes with this figure."
    )


def _table(rows: Sequence[ChunkChange], probes: Sequence[str]) -> Grid:
    headings = (
        "probe", "episodes", "chunk changed", "noise floor", "translation", "of its length", "rotation", "gripper",
    )  # fmt: skip
    table = Grid(*headings, left=1)
    floor = _share(rows, REPEAT)
    for name in probes:
        mine = [r for r in rows if r.spec.key.prompt == name]
        if not mine:
            table.add(name, 0, *("-" * (len(headings) - 2)))
            continue
        translation, rotation, gripper, relative = (
            sum(getattr(r, size) for r in mine) / len(mine) for size in SIZES
        )
        table.add(
            name,
            len(mine),
            _share(rows, name),
            "" if name == REPEAT else floor,
            f"{translation:.3f}",
            f"{relative:.0%}",
            f"{rotation:.3f}",
            f"{gripper:.0%}",
        )
    return table


def _share(rows: Sequence[ChunkChange], probe: str) -> str:
    changed = [row.changed for row in rows if row.spec.key.prompt == probe]
    return f"{sum(changed) / len(changed):.0%}" if changed else "-"
