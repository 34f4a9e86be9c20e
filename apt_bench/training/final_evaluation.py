"""The short evaluation of the policy at the end of a training."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from apt_bench.analysis.stats import wilson
from apt_bench.rollout.runner import RunOptions, run
from apt_bench.training.recipe import Recipe
from apt_bench.training.session import require_folder

POLICY = "apt_bench.policies.apt:AptPolicy"
"""The policy class that runs a checkpoint."""


def evaluation_options(recipe: Recipe, policy: Path, out: Path) -> RunOptions:
    """Options of the evaluation run of a policy; its run directory is `out`/evaluation."""
    wanted = recipe.evaluate
    return RunOptions.of(
        suite=wanted.suite,
        policy=POLICY,
        policy_args=(f"weights={json.dumps(str(policy))}", *wanted.policy_args),
        cells=wanted.cells,
        episodes=wanted.episodes,
        limit=wanted.limit,
        execute_horizon=wanted.execute,
        out=out / "evaluation",
    )


def evaluate_policy(recipe: Recipe, policy: Path, out: Path, console: Console) -> None:
    """Evaluate a policy on the cells that the recipe names and print success rates with 95% intervals.

    Args:
        recipe: The recipe; `evaluate` defines what is run. An empty suite = no evaluation.
        policy: Folder of the policy.
        out: Folder of the training.
        console: Where results are printed.

    Raises:
        UserError: The folder of the training is missing, or the run cannot start.
        KeyboardInterrupt: The evaluation was interrupted.
    """
    wanted = recipe.evaluate
    if not wanted.suite:
        return
    console.print(
        f"A short evaluation on {wanted.suite}: {wanted.episodes} episodes per task of {', '.join(wanted.cells)}"
    )
    require_folder(out)
    found = run(evaluation_options(recipe, policy, out), console)
    if found.stopped == "interrupted":
        console.print(
            f"The evaluation was interrupted; {len(found.records)} episodes are kept in {found.out}. The policy is "
            f"complete: {policy}"
        )
        raise KeyboardInterrupt
    records = found.records
    for cell in wanted.cells:
        won = [r.outcome == "success" for r in records if r.key.cell == cell and r.outcome != "error"]
        if won:
            low, high = wilson(sum(won), len(won))
            console.print(
                f"{cell}: {sum(won)}/{len(won)}, 95% interval {100 * low:.0f} to {100 * high:.0f} %"
            )
