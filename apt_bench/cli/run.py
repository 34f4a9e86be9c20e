"""`apt-bench run`: run a policy on a suite."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from apt_bench.cli._json import AsJson, print_json, stdout_to_stderr
from apt_bench.cli._options import GroupedCommand, read_words, takes_options
from apt_bench.core.machine import cores, free_memory_gb
from apt_bench.core.text import literal, plain_console, say
from apt_bench.rollout.cluster import auto_workers
from apt_bench.rollout.options import RunOptions, number_of_workers, read_config
from apt_bench.rollout.plan import Plan, dry_plan
from apt_bench.rollout.progress import column, duration
from apt_bench.rollout.result import RunResult
from apt_bench.rollout.runner import run
from apt_bench.runs.metadata import sequential_words
from apt_bench.runs.protocol import protocol_hash
from apt_bench.runs.records import EpisodeRecord

STEP_SECONDS, IMAGE_SECONDS = 0.008, 0.1
"""LIBERO on one CPU core: a control step and a 256 x 256 image from the software renderer."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("run", cls=GroupedCommand)(run_command)


@takes_options()
def run_command(
    given: dict[str, Any],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with these options. The command line overrides it."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run and about how long it takes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a policy on a suite. Rerun the same command to resume.

    --suite and --policy are required, here or in the file of --config.
    """
    options = RunOptions.of(**(read_config(config) if config else {}) | read_words(given))
    with stdout_to_stderr(as_json):
        console = plain_console()
        if dry_run:
            plan = dry_plan(options)
        else:
            result = run(options, console)
    if dry_run:
        if as_json:
            print_json(plan_card(plan, options))
        else:
            _show_plan(plan_card(plan, options), console)
        return
    if as_json:
        print_json(result_card(result, options))
        raise typer.Exit(result.exit_code)
    console.print(summary(result.records, Counter(map(column, result.missing))))
    if result.advice:
        say(result.advice)
    if result.sequential:
        console.print(sequential_words(result.sequential), soft_wrap=True)
    if result.records:
        console.print(f"Next: apt-bench report {shlex.quote(str(result.out))}", soft_wrap=True)
    raise typer.Exit(result.exit_code)


def result_card(result: RunResult, options: RunOptions) -> dict[str, Any]:
    """What `run --json` prints. Rates and bounds are shares; null where no episode is finished."""
    keys = [(k.cell, k.prompt) for k in (*(r.key for r in result.records), *result.missing)]
    own = [r for r in result.records if r.key.prompt == "default"]
    return {
        "out": str(result.out),
        "policy": options.execution.policy,
        "cells": [
            {"cell": cell, "prompt": prompt}
            | _counts(
                [r for r in result.records if (r.key.cell, r.key.prompt) == (cell, prompt)],
                keys.count((cell, prompt)),
            )
            for cell, prompt in dict.fromkeys(keys)
        ],
        "overall": _counts(own, sum(prompt == "default" for _, prompt in keys)),
        "missing": [key.id for key in result.missing],
        "stopped": result.stopped or None,
        "advice": result.advice or None,
        "sequential": result.sequential,
        "exit_code": result.exit_code,
    }


def _counts(records: Sequence[EpisodeRecord], requested: int) -> dict[str, Any]:
    from apt_bench.analysis.stats import wilson  # scipy takes a second to import

    k, n = sum(r.outcome == "success" for r in records), len(records)
    low, high = wilson(k, n) if n else (None, None)
    return {
        "successes": k,
        "finished": n,
        "requested": requested,
        "rate": k / n if n else None,
        "low": low,
        "high": high,
    }


def summary(records: Sequence[EpisodeRecord], missing: Counter[str]) -> Table:
    """One row per cell: successes, rate with its Wilson 95% interval, coverage."""
    from apt_bench.analysis.stats import wilson  # scipy takes a second to import

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("cell", "successes", "%", "95% interval", "coverage"):
        table.add_column(heading, justify="left" if heading == "cell" else "right")
    done = Counter(column(r.key) for r in records)
    won = Counter(column(r.key) for r in records if r.outcome == "success")
    for cell in dict.fromkeys([*done, *missing]):
        k, n = won[cell], done[cell]
        low, high = wilson(k, n)
        rate, interval = (f"{100 * k / n:.1f}", f"{100 * low:.1f} to {100 * high:.1f}") if n else ("", "")
        row = [cell, f"{k}/{n}", rate, interval, f"{100 * n / (n + missing[cell]):.0f}%"]
        table.add_row(*map(literal, row))
    return table


def plan_card(plan: Plan, options: RunOptions) -> dict[str, Any]:
    """What `run --dry-run --json` prints. `seconds`: an upper bound without the policy's own time."""
    todo = Counter(column(s.key) for s in plan.todo)
    cells = []
    for name in dict.fromkeys(column(s.key) for s in plan.specs):
        keys = [s.key for s in plan.specs if column(s.key) == name]
        cells.append(
            {
                "cell": keys[0].cell,
                "prompt": keys[0].prompt,
                "tasks": len({key.task for key in keys}),
                "episodes": len(keys),
                "finished": len(keys) - todo[name],
                "to_run": todo[name],
            }
        )
    cameras = len(plan.policy_spec.cameras)
    seconds = sum(s.max_steps * (STEP_SECONDS + cameras * IMAGE_SECONDS / plan.execute) for s in plan.todo)
    number = number_of_workers(options.execution.workers)
    workers = auto_workers(cores(), free_memory_gb()) if number is None else max(1, number)
    return {
        "out": str(plan.out),
        "policy": options.execution.policy,
        "cells": cells,
        "to_run": len(plan.todo),
        "workers": workers,
        "seconds": seconds / workers,
        "execute_horizon": plan.execute,
        "protocol_hash": protocol_hash(plan.protocol),
        "sequential": plan.rule.card() | {"left_out": plan.rule.left_out} if plan.rule else None,
        "unknown": plan.unknown or None,
    }


def _show_plan(card: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("cell", "tasks", "episodes", "finished", "to run"):
        table.add_column(heading, justify="left" if heading == "cell" else "right")
    for cell in card["cells"]:
        name = cell["cell"] if cell["prompt"] == "default" else f"{cell['cell']} ({cell['prompt']})"
        table.add_row(literal(name), *(str(cell[k]) for k in ("tasks", "episodes", "finished", "to_run")))
    console.print(table)
    if rule := card["sequential"]:
        console.print(
            f"At most {rule['maximum']} pairs with {rule['against']}, tested {rule['planned_looks']} times; "
            f"{rule['left_out']} episodes have no partner there and are left out.",
            soft_wrap=True,
        )
    console.print(f"{card['to_run']} episodes to run, into {card['out']}", soft_wrap=True)
    console.print(
        f"At most about {duration(card['seconds'])} on {card['workers']} worker(s) with software rendering, without "
        "the policy's own time. Episodes that succeed end earlier.",
        soft_wrap=True,
    )
    if card["unknown"]:
        console.print(f"Unknown until the policy is loaded: {card['unknown']}.", soft_wrap=True)
