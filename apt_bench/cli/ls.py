"""`apt-bench ls`: what there is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from apt_bench.cli._grid import Grid
from apt_bench.cli._json import AsJson, print_json
from apt_bench.cli._options import words
from apt_bench.core.errors import UserError
from apt_bench.core.status import name_step, status
from apt_bench.core.text import literal, one_line, plain_console
from apt_bench.runs.records import RunStore
from apt_bench.runs.solvability import on_record
from apt_bench.suites import EpisodeKey, Suite, iter_suites, load_suite


class Kind(StrEnum):
    """What `ls` lists."""

    suites = "suites"
    cells = "cells"
    tasks = "tasks"
    policies = "policies"
    runs = "runs"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("ls")(ls_command)


def ls_command(
    kind: Annotated[Kind, typer.Argument(help="What to list.")] = Kind.suites,
    suite: Annotated[str | None, typer.Option(help="Only this suite (a name or a YAML file).")] = None,
    cells: Annotated[
        str | None, typer.Option(help="With tasks: only these cells, separated by commas.")
    ] = None,
    path: Annotated[Path, typer.Option(help="Folder of the run directories.")] = Path("results/runs"),
    as_json: AsJson = False,
) -> None:
    """List suites, cells, tasks, policies or runs."""
    table = _Rows()
    with status(f"Reading {kind.value}"):
        suites = [load_suite(suite)] if suite else list(iter_suites())
        fill = {
            Kind.suites: lambda: _suites(table, suites),
            Kind.cells: lambda: _cells(table, suites),
            Kind.tasks: lambda: _tasks(table, suites, words(cells)),
            Kind.policies: lambda: _policies(table),
            Kind.runs: lambda: _runs(table, path),
        }
        fill[kind]()
    if as_json:
        print_json({kind.value: table.objects})
        return
    console = plain_console()
    if kind is Kind.runs:
        console.print(f"Runs in {path}:", soft_wrap=True)
    for title, grid in table.tables:
        if title:
            console.print(literal(title, "bold"), soft_wrap=True)
        console.print(grid)


class _Rows:
    """Rows for people and for programs."""

    def __init__(self) -> None:
        self.tables: list[tuple[str, Grid]] = []  # with their titles
        self.objects: list[dict[str, Any]] = []

    def head(self, *headings: str, title: str = "") -> None:
        """Begin a table."""
        self.tables.append((title, Grid(*headings)))

    def add(self, *values: Any, **more: Any) -> None:
        """Add a row to the last table; `more` adds or replaces values in JSON."""
        grid = self.tables[-1][1]
        keys = [heading.replace(" ", "_") for heading in grid.headings]
        grid.add(*values)
        self.objects.append(dict(zip(keys, values, strict=False)) | more)


def _suites(table: _Rows, suites: list[Suite]) -> None:
    table.head("suite", "headline cells", "episodes per task", "about")
    for suite in suites:
        headline = sum(c.headline for c in suite.cells)
        table.add(
            suite.name,
            f"{headline} of {len(suite.cells)}",
            suite.episodes,
            suite.about,
            headline_cells=headline,
            cells=len(suite.cells),
        )


def _cells(table: _Rows, suites: list[Suite]) -> None:
    for suite in suites:
        table.head("cell", "label", "headline", "steps", "instruction", "control", title=suite.name)
        for c in suite.cells:
            headline = "yes" if c.headline else ""
            table.add(
                c.name,
                c.label,
                headline,
                c.max_steps,
                c.instruction,
                c.control,
                suite=suite.name,
                headline=c.headline,
            )


def _tasks(table: _Rows, suites: list[Suite], cells: tuple[str, ...]) -> None:
    for suite in suites:
        record = on_record(suite.name)
        chosen = [suite.cell(c) for c in cells] if cells else [c for c in suite.cells if c.headline]
        for cell in chosen:
            title = f"{suite.name}, cell {cell.name}"
            table.head("index", "task", "sent sentence", "episodes", "notes", title=title)
            for index, task in enumerate(suite.cell_tasks(cell)):
                notes = sorted({flag for found in task.flags.values() for flag in found})
                if task.unavailable:
                    notes = [f"unavailable: {task.unavailable}"]
                elif evidence := record.get((cell.name, task.name)):
                    notes += [f"oracle {evidence.score}"]
                sentence = task.prompts.get(cell.instruction, "")
                table.add(
                    index,
                    task.name,
                    sentence,
                    task.inits,
                    ", ".join(notes),
                    suite=suite.name,
                    cell=cell.name,
                )


def _policies(table: _Rows) -> None:
    from apt_bench.policies.registry import load_baseline, policy_names

    table.head("policy", "about")
    for name in policy_names():
        table.add(name, load_baseline(name).about)
    table.add("my_module:MyPolicy", "Your own class, importable from here (docs/running.md).")


def _runs(table: _Rows, path: Path) -> None:
    """List the runs. Episodes under own prompts and under language probes are counted separately."""
    table.head("run", "suite", "policy", "date", "done", "successes", "errors", "probed")
    if not os.path.isdir(path):
        raise UserError(f"No folder '{path}'. `apt-bench run` writes into results/runs by default.")
    folders = list(run_folders(path))
    for number, folder in enumerate(folders, 1):
        name_step(f"Reading run {number} of {len(folders)}")
        name = str(path) if folder == path else os.path.relpath(folder, path)
        try:
            store = RunStore.open(folder)
            records = store.episodes()
            protocol, run = store.protocol(), store.run()
        except UserError as error:
            table.add(name, f"damaged: {one_line(error, 200)}", run=str(folder))
            continue
        own = Counter(r.outcome for r in records if r.key.prompt == EpisodeKey.prompt)
        probed = sum(r.key.prompt != EpisodeKey.prompt and r.outcome != "error" for r in records)
        done = own.total() - own["error"]
        asked = sum(sum(tasks.values()) for tasks in (run.get("requested") or {}).values())
        table.add(
            name,
            str(protocol.get("suite", "")),
            str(run.get("policy", {}).get("name") or ""),
            str(run.get("ended") or run.get("started") or "")[:10],
            f"{done}/{asked}" if asked else done,
            own["success"],
            own["error"] or None,
            probed or None,
            run=str(folder),
            protocol=str(protocol.get("hash", "")),
            started=run.get("started"),
            ended=run.get("ended"),
            episodes=done,
            requested=asked,
            errors=own["error"],
            probed=probed,
        )


def run_folders(path: Path) -> Iterator[Path]:
    """Run directories in a folder and below it, in order. Links are followed."""
    seen = set()
    for place, names, files in os.walk(path, followlinks=True):
        if os.path.realpath(place) in seen:  # a link to a folder that was visited
            names.clear()
            continue
        seen.add(os.path.realpath(place))
        names.sort()
        if "protocol.json" in files or "episodes.jsonl" in files:
            names.clear()  # its videos and actions
            yield Path(place)
