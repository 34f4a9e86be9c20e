"""The data of a suite: which episodes it has, in which scene and with which instruction.

A suite is one YAML file. It has cells (the columns of a table). Each cell has tasks, a step budget and a source of
instructions. `registry.load_suite` reads the file, and `Suite.select` returns `EpisodeSpec`s. Nothing here imports a
simulator: the YAML file names the function that returns a cell's tasks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Annotated, Any

from apt_bench.core.config import (
    Arguments,
    Count,
    Name,
    Natural,
    Range,
    build,
    check_fields,
    load_object,
)
from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.core.jsonable import jsonable
from apt_bench.core.plugins import find_plugins
from apt_bench.core.text import one_line

STALE = "@stale"
"""Suffix of a cell's name that selects its control: the same cell with the sentence of the file's name."""

ENVIRONMENTS = {
    "libero": "apt_bench.envs.libero:LiberoEnv",
    "tabletop": "apt_bench.envs.tabletop:TabletopEnv",
}
"""Short names of the shipped environments, for the key `env` of a suite."""

Steps = Annotated[int, Range(least=1, most=10**6)]
"""A number of control steps."""

Hertz = Annotated[int, Range(least=1, most=10_000)]


@dataclass(frozen=True)
class EpisodeKey:
    """Identifies an episode. Two runs that share a key had the same initial state and the same kind of prompt, so that
    their episodes can be paired.

    Attributes:
        suite: Name of the suite.
        cell: Name of the cell.
        task: Name of the task.
        init: Index of the initial state, from 0.
        seed: The suite's seed or the one given to the run.
        prompt: "default" or the name of a language probe.
    """

    suite: str
    cell: str
    task: str
    init: int
    seed: int
    prompt: str = "default"

    @cached_property
    def id(self) -> str:
        """The key in one line, e.g. `libero_pro/spatial_task/pick_up_.../init3/seed7/default`."""
        return f"{self.suite}/{self.cell}/{self.task}/init{self.init}/seed{self.seed}/{self.prompt}"


@dataclass(frozen=True)
class Task:
    """One instruction in one scene.

    Attributes:
        name: Unique in its cell.
        prompts: Sentences by source: `file` (made from the file's name), `bddl` (from inside the file), `text` (the
            suite's own). Where every initial state has its own sentence, these are templates for people to read.
        args: Arguments of the environment, copied to `EpisodeSpec.args`.
        group: Name of what is expensive to change, such as a compiled model. The runner keeps a worker on one group.
        inits: Number of initial states.
        unavailable: Why the task cannot be run, or None.
        flags: Known defects by index of the initial state; None means every initial state.
        prompts_of: `prompts_of(init, seed)` returns the sentences by source, where every initial state has its own.
        container: The place to which each of the task's instructions moves an item, where the items differ. Reports
            show the tasks of such a cell apart.
    """

    name: Name
    prompts: Mapping[str, str]
    args: Mapping[str, Any]
    group: str
    inits: Natural
    unavailable: str | None = None
    flags: Mapping[int | None, tuple[str, ...]] = field(default_factory=dict)
    prompts_of: Callable[[int, int], Mapping[str, str]] | None = None
    container: str | None = None

    def __post_init__(self) -> None:
        build(Name, self.name, "the name of a task")
        build(Natural, self.inits, f"task '{self.name}': inits")
        build(Mapping[str, str], self.prompts, f"task '{self.name}': prompts")


@dataclass(frozen=True)
class Cell:
    """A set of tasks with one step budget: a column of a results table. Raises UserError for invalid values.

    Attributes:
        name: Unique in its suite.
        label: Heading of the column.
        max_steps: Budget of an episode in control steps, without settling.
        instruction: Source of the sentence that is sent: a key of `Task.prompts`.
        args: Arguments of the function that returns the tasks.
        headline: Whether the cell is run by default and is part of the average.
        control: The unperturbed cell with the same tasks, as "suite:cell".
        about: A description for people.
    """

    name: Name
    label: str
    max_steps: Steps
    instruction: str
    args: Arguments = field(default_factory=dict)
    headline: bool = True
    control: str | None = None
    about: str = ""

    def __post_init__(self) -> None:
        check_fields(self, f"cell '{one_line(self.name, 60)}'")

    @property
    def stale(self) -> bool:
        """Whether this cell is a control that sends the sentence of the file's name (`STALE`)."""
        return self.name.endswith(STALE)


@dataclass(frozen=True)
class EpisodeSpec:
    """Everything that an environment needs for one episode.

    Attributes:
        key: Identifies the episode.
        env: The environment as "module:Class".
        prompt: The sentence that is sent first.
        prompt_source: Key of `prompt` in `prompts`, or "probe:NAME".
        prompts: All sentences of the task by source.
        max_steps: Budget in control steps, without settling.
        settle_steps: Control steps before the budget starts.
        args: Arguments of the environment.
        group: See `Task.group`.
        flags: Known defects of this episode.
    """

    key: EpisodeKey
    env: str
    prompt: str
    prompt_source: str
    prompts: Mapping[str, str]
    max_steps: int
    settle_steps: int
    args: Mapping[str, Any]
    group: str
    flags: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """`EpisodeKey.id`; observations of this episode carry it."""
        return self.key.id

    @cached_property
    def _scene_digest(self) -> bytes:
        scene = [jsonable(dict(self.args)), self.key.task, self.key.init, self.key.seed]
        return hashlib.sha256(json.dumps(scene, sort_keys=True).encode()).digest()

    @cached_property
    def env_seed(self) -> int:
        """Seed of everything random in the scene: 32 bits of SHA-256.

        It depends on the scene, not on the cell's name or the prompt. `spatial_task` and `spatial_task@stale` therefore
        have the same initial states."""
        return int.from_bytes(self._scene_digest[:4], "little")

    @cached_property
    def noise_key(self) -> str:
        """Seed of a policy's noise: 32 hex digits of SHA-256.

        It depends on scene, initial state and seed, but neither on the cell's name nor on the prompt. The same scene
        with another sentence has the same noise."""
        return hashlib.sha256(b"noise" + self._scene_digest).hexdigest()[:32]


@dataclass(frozen=True)
class Suite:
    """A benchmark. Raises UserError for invalid values.

    The defaults are those of every shipped suite.

    Attributes:
        name: Unique among the suites.
        version: Increased when episodes change, so that older results are not compared.
        title: A title for people. Default: the name.
        env: The environment as "module:Class", or the name of a shipped environment or of one that an installed package
            adds. The suite stores "module:Class".
        tasks: "module:function", called with a `Cell`, returns the list of its `Task`s.
        episodes: Default number of initial states per task.
        cells: The cells in the order of the table.
        settle_steps: Control steps before the budget starts.
        seed: Default seed.
        control_hz: Control steps per second.
        about: A description for people.
        checks: "module:function" for `apt-bench validate`, called as (suite, premises=bool), yields `Finding`s.
        proofs: "module:function" for `validate --solvable`, called as (suite, specs), returns `solvability.Proof`s.
        published: Name of the CSV with published results, in results/published.
        simulator: Package -> version that the protocol requires.
    """

    name: Name
    version: Natural = 1
    title: str = ""
    _: KW_ONLY
    env: str
    tasks: str
    episodes: Count
    cells: tuple[Cell, ...]
    settle_steps: Annotated[int, Range(least=0, most=10**6)] = 10
    seed: Natural = 7
    control_hz: Hertz = 20
    about: str = ""
    checks: str | None = None
    proofs: str | None = None
    published: str | None = None
    simulator: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"suite '{one_line(self.name, 60)}'"
        check_fields(self, where)
        object.__setattr__(self, "title", self.title or self.name)
        object.__setattr__(self, "env", _environment(self.env, where))
        names = [c.name for c in self.cells]
        if twice := {n for n in names if names.count(n) > 1}:
            raise UserError(f"{where}: cell '{sorted(twice)[0]}' is defined twice.")

    def cell(self, name: str) -> Cell:
        """Return a cell by name. `NAME@stale` is the same cell with the sentence of the file's name (`STALE`).

        Raises UserError for an unknown name."""
        for cell in self.cells:
            if cell.name == name:
                return cell
            if name == cell.name + STALE and cell.instruction != "file":
                return dataclasses.replace(
                    cell, name=name, label=cell.label + " (stale prompt)", instruction="file", headline=False
                )
        known = [c.name for c in self.cells] + [c.name + STALE for c in self.cells if c.instruction == "bddl"]
        raise UserError(f"Suite '{self.name}' has no cell '{name}'. {did_you_mean(name, known)}")

    def cell_tasks(self, cell: Cell) -> list[Task]:
        """Return the tasks of a cell, from the function that the YAML file names.

        Raises UserError where the function returns anything else."""
        tasks: list[Task] = load_object(self.tasks)(cell)
        names = [t.name if isinstance(t, Task) else None for t in tasks]
        if None in names or len(set(names)) < len(names):
            raise UserError(
                f"Suite '{self.name}': {self.tasks} must return a list of Task with different names for cell "
                f"'{cell.name}'; it returned {one_line(names, 300)}."
            )
        return tasks

    def select(
        self,
        cells: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        episodes: int | None = None,
        seed: int | None = None,
        instruction: str | None = None,
        limit: int | None = None,
    ) -> list[EpisodeSpec]:
        """Return episodes, cell by cell and task by task.

        A cell or task that is named twice is selected once.

        Args:
            cells: Names of cells. None or empty: the headline cells.
            tasks: Names of tasks, parts of names, or indices in the cell ("3"). None or empty: all tasks.
            episodes: Initial states per task. None: the suite's default.
            seed: None: the suite's seed.
            instruction: Source of the sentences, in place of each cell's own. Cells `NAME@stale` keep theirs.
            limit: Return the first episodes only.

        Raises:
            UserError: A name or a source is unknown, a number is invalid, or a task has fewer initial states.
        """
        chosen = (
            [self.cell(c) for c in dict.fromkeys(cells)] if cells else [c for c in self.cells if c.headline]
        )
        count: int = build(Count, self.episodes if episodes is None else episodes, "--episodes")
        seed = build(Natural | None, seed, "--seed")
        limit = build(Count | None, limit, "--limit")
        specs: list[EpisodeSpec] = []
        unmatched = set(tasks or ())
        for cell in chosen:
            for index, task in enumerate(self.cell_tasks(cell)):
                hits = {t for t in tasks or () if t == str(index) or (not t.isdecimal() and t in task.name)}
                if tasks and not hits:
                    continue
                unmatched -= hits
                if task.unavailable:
                    continue
                if count > task.inits:
                    raise UserError(
                        f"{count} episodes were requested, but task '{task.name}' of cell '{cell.name}' has "
                        f"{task.inits} initial states. Use --episodes {task.inits} or fewer."
                    )
                specs += [self._spec(cell, task, i, seed, instruction) for i in range(count)]
        if unmatched:
            names = [t.name for c in chosen for t in self.cell_tasks(c)]
            word = sorted(unmatched)[0]
            raise UserError(
                f"No task '{word}' in {', '.join(c.name for c in chosen)}. {did_you_mean(word, names)}"
            )
        return specs[:limit] if limit is not None else specs

    def episode(self, key: EpisodeKey) -> EpisodeSpec:
        """Return the episode of a key, with the cell's own instruction. Raises UserError where there is none."""
        cell = self.cell(key.cell)
        for task in self.cell_tasks(cell):
            if task.name == key.task and not task.unavailable and key.init < task.inits:
                return self._spec(cell, task, key.init, key.seed, None)
        raise UserError(f"Suite '{self.name}' has no episode '{key.id}'.")

    def _spec(
        self, cell: Cell, task: Task, init: int, seed: int | None, instruction: str | None
    ) -> EpisodeSpec:
        source = instruction if instruction and not cell.stale else cell.instruction
        key = EpisodeKey(self.name, cell.name, task.name, init, self.seed if seed is None else seed)
        prompts = task.prompts_of(init, key.seed) if task.prompts_of else task.prompts
        if source not in prompts:
            raise UserError(
                f"Cell '{cell.name}' has no instruction source '{source}'. {did_you_mean(source, prompts)}"
            )
        return EpisodeSpec(
            key=key,
            env=self.env,
            prompt=prompts[source],
            prompt_source=source,
            prompts=prompts,
            max_steps=cell.max_steps,
            settle_steps=self.settle_steps,
            args=task.args,
            group=task.group,
            flags=(*task.flags.get(None, ()), *task.flags.get(init, ())),
        )


def _environment(name: str, where: str) -> str:
    """Return "module:Class" of the environment that a suite names. Raises UserError for an unknown name."""
    if ":" in name:
        return name
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    if name in (others := find_plugins("apt_bench.envs")):
        return others[name].target
    raise UserError(
        f"{where}: no environment '{one_line(name, 100)}'. {did_you_mean(name, [*ENVIRONMENTS, *others])} "
        "For your own environment write env: my_module:MyEnv."
    )
