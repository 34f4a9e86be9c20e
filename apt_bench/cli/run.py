"""`apt-bench run`: run a policy on a suite."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from apt_bench.cli._grid import Grid
from apt_bench.cli._json import AsJson, print_json, stdout_to_stderr
from apt_bench.cli._options import GroupedCommand, read_words, takes_options
from apt_bench.cli._run_summary import print_summary, result_card, time_line
from apt_bench.core.errors import UserError
from apt_bench.core.machine import cores, free_memory_gb
from apt_bench.core.status import status
from apt_bench.core.text import file_name, plain_console, say
from apt_bench.rollout.cluster import auto_workers
from apt_bench.rollout.options import OPTIONS, RunOptions, number_of_workers, read_config
from apt_bench.rollout.plan import Plan, dry_plan
from apt_bench.rollout.progress import column, duration
from apt_bench.rollout.runner import run, run_several
from apt_bench.runs.protocol import protocol_hash
from apt_bench.suites import load_suite

STEP_SECONDS, IMAGE_SECONDS = 0.008, 0.1
"""LIBERO on one CPU core: a control step and a 256 x 256 image from the software renderer."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("run", cls=GroupedCommand)(run_command)


@takes_options(
    changed={
        "policy": {
            "repeated": True,
            "text": "Name of a shipped policy, or my_module:MyPolicy. Repeat it to run several policies together.",
        }
    }
)
def run_command(
    given: dict[str, Any],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with these options. The command line overrides it."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run and about how long it takes.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option("--report", help="Write the report when the run has ended, as `apt-bench report` does."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a policy on a suite. Rerun the same command to resume.

    --suite and --policy are required, here or in the file of --config.
    """
    runs = options_of_each(given, read_config(config) if config else {})
    with stdout_to_stderr(as_json):
        console = plain_console()
        if dry_run:
            with status("Selecting episodes"):
                cards = [plan_card(dry_plan(options), options) for options in runs]
        else:
            results = [run(runs[0], console)] if len(runs) == 1 else run_several(runs, console)
    if dry_run:
        if as_json:
            print_json(cards[0] if len(cards) == 1 else {"runs": cards})
        else:
            for card in cards:
                _show_plan(card, console)
        return
    suite = load_suite(runs[0].selection.suite)
    recorded = [result.out for result in results if result.records]
    page = write_page(recorded) if report and recorded else None
    code = max(result.exit_code for result in results)
    if as_json:
        cards = [
            result_card(result, options.execution.policy, suite)
            for options, result in zip(runs, results, strict=True)
        ]
        found = cards[0] if len(cards) == 1 else {"runs": cards, "exit_code": code}
        print_json(found | {"report": page and str(page)})
        raise typer.Exit(code)
    for options, result in zip(runs, results, strict=True):
        if len(runs) > 1:
            console.print(f"\n{options.execution.policy}: {result.out}", markup=False, soft_wrap=True)
        print_summary(result, suite, console)
        if result.advice:
            say(result.advice)
    if any(result.new for result in results):
        console.print(time_line(results), soft_wrap=True)
    if page:
        console.print(f"Report: {page}", soft_wrap=True)
    elif recorded:
        console.print(f"Next: apt-bench report {shlex.join(map(str, recorded))}", soft_wrap=True)
    raise typer.Exit(code)


ONE_POLICY = (
    "policy_args", "file", "checkpoint", "servers", "llm_model", "max_cost", "cassette", "against", "selection_rule",
)  # fmt: skip
"""Options that say something about one policy."""


def options_of_each(given: Mapping[str, Any], config: Mapping[str, Any]) -> list[RunOptions]:
    """The options of each run: one for each --policy.

    With several, --out is the folder of their run directories.

    Args:
        given: Words of the command line by field; `policy` is a list.
        config: Options of a configuration file.

    Raises:
        UserError: A wrong value, or an option that says something about one policy beside several policies.
    """
    policies = list(dict.fromkeys(given.get("policy", ())))
    values = {**config, **read_words({k: v for k, v in given.items() if k != "policy"})}
    if len(policies) < 2:
        return [RunOptions.of(**values | ({"policy": policies[0]} if policies else {}))]
    options = [RunOptions.of(**values | {"policy": policy}) for policy in policies]
    for name in ONE_POLICY:
        if values.get(name):
            raise UserError(
                f"{OPTIONS[name].flag} is about one policy, and there are {len(policies)}: {', '.join(policies)}. Give "
                "each of them a command of its own."
            )
    if options[0].output.track != "none":
        raise UserError("--track follows one run. Give each policy a command of its own.")
    if out := options[0].output.out:
        return [o.replace(out=out / file_name(o.execution.policy)) for o in options]
    return options


def write_page(runs: Sequence[Path]) -> Path:
    """Write the report of these runs, one of them into its own folder, and return the page's path."""
    with status("Writing the report") as step:
        from apt_bench.analysis.run import load_runs
        from apt_bench.reporting.report import write_report

        folder = runs[0] / "report" if len(runs) == 1 else Path("report")
        return write_report(load_runs([str(run) for run in runs]), folder, step=step)


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
    table = Grid("cell", "tasks", "episodes", "finished", "to run", left=1)
    for cell in card["cells"]:
        name = cell["cell"] if cell["prompt"] == "default" else f"{cell['cell']} ({cell['prompt']})"
        table.add(name, *(cell[k] for k in ("tasks", "episodes", "finished", "to_run")))
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
