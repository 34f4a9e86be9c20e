"""What identifies a run: its protocol (everything that may change a score), and its entries in `run.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from apt_bench.core import provenance
from apt_bench.policies.base import PolicySpec
from apt_bench.runs.protocol import CUSTOM
from apt_bench.suites import EpisodeSpec, Suite


def protocol(
    suite: Suite,
    policy: PolicySpec,
    execute: int,
    seed: int | None,
    instruction: str | None,
    custom: str | None = None,
) -> dict[str, Any]:
    """Everything that may change a score.

    The requested episodes and the policy are left out, so that a run can be extended and policies can be compared.
    For the same reason every cell of the suite is included.

    Args:
        suite: The suite.
        policy: The policy's declaration.
        execute: Execute horizon.
        seed: Seed of the scenes; None = the suite's.
        instruction: Source of the instructions; None = each cell's own.
        custom: Hash of the user's own sentences, if there are any.
    """
    return {
        "suite": suite.name,
        "version": suite.version,
        "env": suite.env,
        "settle_steps": suite.settle_steps,
        "seed": suite.seed if seed is None else seed,
        "control_hz": suite.control_hz,
        "instruction": instruction or "per cell",
        "execute": execute,
        "cameras": list(policy.cameras),
        "cells": {
            c.name: {"max_steps": c.max_steps, "instruction": c.instruction, "args": dict(c.args)}
            for c in suite.cells
        },
        "simulator": provenance.labels(suite.simulator),
    } | ({CUSTOM: custom} if custom else {})


def simulator(suite: Suite) -> dict[str, Any]:
    """Which simulator is imported here (`provenance.describe`); `unpinned` only where it is not the suite's, with what
    differs."""
    here = provenance.simulator(suite.simulator)
    differs = provenance.problems(suite.simulator, here)
    return {"simulator": provenance.describe(here)} | ({"unpinned": differs} if differs else {})


def requested(specs: Iterable[EpisodeSpec], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The episodes requested so far, for `run.json`. Coverage is measured against them.

    Args:
        specs: The episodes requested now.
        earlier: The present `run.json`.

    Returns:
        `requested`: {cell: {task: number of initial states}} under the cells' own prompts; `requested_probes`: {probe:
        {cell: {task: number}}} under language probes.
    """
    own: dict[str, dict[str, int]] = {c: dict(tasks) for c, tasks in (earlier.get("requested") or {}).items()}
    probed: dict[str, dict[str, dict[str, int]]] = {
        probe: {c: dict(tasks) for c, tasks in cells.items()}
        for probe, cells in (earlier.get("requested_probes") or {}).items()
    }
    now = Counter((s.key.prompt, s.key.cell, s.key.task) for s in specs)
    for (prompt, cell, task), number in now.items():
        cells = own if prompt == "default" else probed.setdefault(prompt, {})
        tasks = cells.setdefault(cell, {})
        tasks[task] = max(tasks.get(task, 0), number)
    return {"requested": own, "requested_probes": probed}


def unavailable(suite: Suite, specs: Iterable[EpisodeSpec]) -> dict[str, dict[str, str]]:
    """Why tasks of the chosen cells cannot be run, as {cell: {task: reason}}."""
    cells = dict.fromkeys(spec.key.cell for spec in specs)
    found = {
        cell: {t.name: t.unavailable for t in suite.cell_tasks(suite.cell(cell)) if t.unavailable}
        for cell in cells
    }
    return {cell: reasons for cell, reasons in found.items() if reasons}
