"""`apt-bench run`: roll a policy out on a suite."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from apt_bench.cli._options import (
    CellList,
    Episodes,
    Limit,
    PolicyArgs,
    PolicyName,
    RayAddress,
    Seed,
    SuiteName,
    TaskList,
    TrackName,
    Unpinned,
    Workers,
    words,
)
from apt_bench.core.config import Range, build
from apt_bench.core.errors import UserError
from apt_bench.core.machine import cores, free_memory_gb
from apt_bench.core.text import literal, plain_console, say
from apt_bench.rollout.cluster import auto_workers
from apt_bench.rollout.options import RunOptions, asked_workers
from apt_bench.rollout.plan import Plan, dry_plan
from apt_bench.rollout.progress import column, duration
from apt_bench.rollout.runner import run
from apt_bench.runs.records import EpisodeRecord, sequential_words

STEP_SECONDS, IMAGE_SECONDS, SCENE_SECONDS = 0.008, 0.1, 5.0
"""LIBERO on one CPU core: a control step, a 256 x 256 image from the software renderer, a scene's compilation."""


Points = Annotated[float, Range(above=0, below=100)]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("run")(run_command)


def run_command(
    suite: SuiteName,
    policy: PolicyName,
    file: Annotated[
        str | None, typer.Argument(help="What the policy executes: --policy replay FILE.")
    ] = None,
    cells: CellList = None,
    tasks: TaskList = None,
    episodes: Episodes = None,
    seed: Seed = None,
    limit: Limit = None,
    instruction_source: Annotated[
        str | None, typer.Option(help="Override where the sent sentence comes from: file or bddl.")
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            help="Comma list of language probes: the same episodes under other sentences, and once more under their "
            "own (repeat)."
        ),
    ] = None,
    execute_horizon: Annotated[
        int | None, typer.Option(help="Actions executed of each chunk. Default: the policy's.")
    ] = None,
    policy_arg: PolicyArgs = None,
    workers: Workers = "auto",
    video: Annotated[
        str, typer.Option(help="Which episodes to film: none, failures, first:K or all.")
    ] = "none",
    save_actions: Annotated[
        bool, typer.Option("--save-actions", help="Store executed actions for replay.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Run directory. Default: results/runs/...")] = None,
    ray_address: RayAddress = None,
    attempts: Annotated[int, typer.Option(help="Tries of an episode that ends in an error.")] = 3,
    hang_timeout: Annotated[
        float, typer.Option(help="Seconds without a sign of life after which a worker is killed.")
    ] = 180.0,
    unpinned: Unpinned = False,
    stop_when: Annotated[
        str, typer.Option(help="complete, or decided: look between batches whether --against is beaten.")
    ] = "complete",
    against: Annotated[
        Path | None, typer.Option(help="With --stop-when decided: the run to compare with, pair by pair.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="With --stop-when decided: stop too where they are equal within so many points."),
    ] = None,
    track: TrackName = "none",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and about how long.")
    ] = False,
) -> None:
    """Roll a policy out on a suite. Rerun the same command to resume."""
    if stop_when not in ("complete", "decided"):
        raise UserError(f"--stop-when is complete or decided, not '{stop_when}'.")
    if (stop_when == "decided") != (against is not None) or (margin is not None and against is None):
        raise UserError(
            "--stop-when decided needs --against RUN; --against and --margin go with nothing else."
        )
    options = RunOptions(
        suite=suite,
        policy=policy,
        policy_args=tuple(policy_arg or ()),
        file=file,
        cells=words(cells),
        tasks=words(tasks),
        episodes=episodes,
        seed=seed,
        limit=limit,
        instruction=instruction_source,
        probes=words(probe),
        execute=execute_horizon,
        workers=workers,
        video=video,
        save_actions=save_actions,
        out=out,
        ray_address=ray_address,
        attempts=attempts,
        hang_seconds=hang_timeout,
        unpinned=unpinned,
        against=against,
        track=track,
        margin=None if margin is None else build(Points, margin, "--margin") / 100,
    )
    console = plain_console()
    if dry_run:
        _show_plan(dry_plan(options), options, console)
        return
    result = run(options, console)
    console.print(summary(result.records, Counter(map(column, result.missing))))
    if result.advice:
        say(result.advice)
    if result.sequential:
        console.print(sequential_words(result.sequential), soft_wrap=True)
    if result.records:
        console.print(f"Next: apt-bench report {shlex.quote(str(result.out))}", soft_wrap=True)
    raise typer.Exit(result.exit_code)


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


def _show_plan(plan: Plan, options: RunOptions, console: Console) -> None:
    todo = Counter(column(s.key) for s in plan.todo)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("cell", "tasks", "episodes", "finished", "to run"):
        table.add_column(heading, justify="left" if heading == "cell" else "right")
    for cell in dict.fromkeys(column(s.key) for s in plan.specs):
        specs = [s for s in plan.specs if column(s.key) == cell]
        left = todo[cell]
        tasks = len({s.key.task for s in specs})
        table.add_row(cell, str(tasks), str(len(specs)), str(len(specs) - left), str(left))
    console.print(table)
    if plan.rule:
        rule = plan.rule.card()
        console.print(
            f"At most {rule['maximum']} pairs with {rule['against']}, looked at {rule['planned_looks']} times; "
            f"{plan.rule.left_out} episodes without a partner there are left out.",
            soft_wrap=True,
        )
    cameras = len(plan.policy_spec.cameras)
    seconds = sum(s.max_steps * (STEP_SECONDS + cameras * IMAGE_SECONDS / plan.execute) for s in plan.todo)
    asked = asked_workers(options.workers)
    workers = auto_workers(cores(), free_memory_gb()) if asked is None else max(1, asked)
    console.print(f"{len(plan.todo)} episodes to run, into {plan.out}", soft_wrap=True)
    console.print(
        f"At most about {duration(seconds / workers)} on {workers} worker(s) with software rendering, the policy's own "
        "time not counted; episodes that succeed end earlier.",
        soft_wrap=True,
    )
    if plan.unknown:
        console.print(f"Not known until the policy is loaded: {plan.unknown}.", soft_wrap=True)
