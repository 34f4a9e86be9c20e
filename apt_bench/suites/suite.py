"""Suites: which episodes there are, in which scene, under which sentence.

A suite is one YAML file. It has cells (columns of a table), each with tasks, a step budget and an instruction source.
`registry.load_suite` reads it, `Suite.select` expands it into `EpisodeSpec`s. Nothing here imports a simulator: the
YAML file names the function that gives a cell's tasks.
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

ENVIRONMENTS = {
    "libero": "apt_bench.envs.libero:LiberoEnv",
    "tabletop": "apt_bench.envs.tabletop:TabletopEnv",
}
"""Short names of the shipped environments, for `env` of a suite."""

Steps = Annotated[int, Range(least=1, most=10**6)]
"""Control steps of an episode."""

Hertz = Annotated[int, Range(least=1, most=10_000)]


@dataclass(frozen=True)
class EpisodeKey:
    """The unit of pairing: two runs that share a key saw the same initial state under the same prompt id."""

    suite: str
    cell: str
    task: str
    init: int
    seed: int
    prompt: str = "default"  # or the name of a language probe

    @cached_property
    def id(self) -> str:
        """A stable one-line name, e.g. `libero_pro/spatial_task/pick_up_.../init3/seed7/default`."""
        return f"{self.suite}/{self.cell}/{self.task}/init{self.init}/seed{self.seed}/{self.prompt}"


@dataclass(frozen=True)
class Task:
    """One instruction in one scene.

    `prompts` maps each source (`file`: the sentence in the file's name, `bddl`: the sentence inside the file,
    `text`: the suite's own) to its sentence. `group` names what is expensive to switch (a compiled model): the runner
    keeps a worker on one group. `unavailable` says why the task cannot be run. `flags` name known defects by init
    index (`None` = every init). Where every initial state has a sentence of its own, `prompts` holds templates for
    people to read, and `prompts_of(init, seed)` the sentences.
    """

    name: Name
    prompts: Mapping[str, str]
    args: Mapping[str, Any]
    group: str
    inits: Natural
    unavailable: str | None = None
    flags: Mapping[int | None, tuple[str, ...]] = field(default_factory=dict)
    prompts_of: Callable[[int, int], Mapping[str, str]] | None = None

    def __post_init__(self) -> None:
        build(Name, self.name, "the name of a task")
        build(Natural, self.inits, f"task '{self.name}': inits")
        build(Mapping[str, str], self.prompts, f"task '{self.name}': prompts")


@dataclass(frozen=True)
class Cell:
    """One column of a table. `args` go to the task provider. Raises UserError for values that cannot be meant."""

    name: Name
    label: str
    max_steps: Steps
    instruction: str  # source of the sent sentence: a key of Task.prompts
    args: Arguments = field(default_factory=dict)
    headline: bool = True
    control: str | None = None  # the unperturbed twin, "suite:cell"
    about: str = ""

    def __post_init__(self) -> None:
        check_fields(self, f"cell '{one_line(self.name, 60)}'")

    @property
    def stale(self) -> bool:
        """Whether this is the control that sends the old sentence on purpose."""
        return self.name.endswith(STALE)


@dataclass(frozen=True)
class EpisodeSpec:
    """Everything an environment needs for one episode."""

    key: EpisodeKey
    env: str  # "module:Class"
    prompt: str
    prompt_source: str
    prompts: Mapping[str, str]
    max_steps: int
    settle_steps: int
    args: Mapping[str, Any]
    group: str
    flags: tuple[str, ...] = ()

    @cached_property
    def _scene_digest(self) -> bytes:
        scene = [jsonable(dict(self.args)), self.key.task, self.key.init, self.key.seed]
        return hashlib.sha256(json.dumps(scene, sort_keys=True).encode()).digest()

    @cached_property
    def env_seed(self) -> int:
        """Seed of everything random in the scene: from what the scene is, not from the cell's name or the prompt, so
        `spatial_task` and `spatial_task@stale` see the same initial states. 32 bits of SHA-256."""
        return int.from_bytes(self._scene_digest[:4], "little")

    @cached_property
    def noise_key(self) -> str:
        """What a policy seeds its noise with: names scene, initial state and seed, neither cell nor prompt. The same
        scene under another sentence gets the same noise. 32 hex digits of SHA-256."""
        return hashlib.sha256(b"noise" + self._scene_digest).hexdigest()[:32]


@dataclass(frozen=True)
class Suite:
    """A benchmark: cells, and where their tasks and environments come from. Raises UserError for values that cannot be
    meant.

    The defaults are what every shipped suite uses. `env` is "module:Class", or the name of a shipped environment or of
    one that an installed package adds; the suite keeps "module:Class".
    """

    name: Name
    version: Natural = 1
    title: str = ""  # for people; default: the name
    _: KW_ONLY
    env: str
    tasks: str  # "module:function", called with a Cell, gives its list of Task
    episodes: Count  # initial states per task by default
    cells: tuple[Cell, ...]
    settle_steps: Annotated[int, Range(least=0, most=10**6)] = 10  # control steps before the budget starts
    seed: Natural = 7
    control_hz: Hertz = 20
    about: str = ""
    checks: str | None = (
        None  # "module:function" for `apt-bench validate`: (Suite, premises=bool) -> Findings
    )
    proofs: str | None = (
        None  # "module:function" for `validate --solvable`: (Suite, specs) -> solvability.Proof
    )
    published: str | None = None  # CSV of the paper's rows, in results/published
    simulator: Mapping[str, str] = field(default_factory=dict)  # package -> version that the protocol means

    def __post_init__(self) -> None:
        where = f"suite '{one_line(self.name, 60)}'"
        check_fields(self, where)
        object.__setattr__(self, "title", self.title or self.name)
        object.__setattr__(self, "env", _environment(self.env, where))
        names = [c.name for c in self.cells]
        if twice := {n for n in names if names.count(n) > 1}:
            raise UserError(f"{where}: cell '{sorted(twice)[0]}' stands there twice.")

    def cell(self, name: str) -> Cell:
        """The cell of this name; `NAME@stale` is the same cell under the file name's sentence."""
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
        """The tasks of a cell, from the provider that the YAML names. Raises UserError where it gives anything else."""
        tasks: list[Task] = load_object(self.tasks)(cell)
        names = [t.name if isinstance(t, Task) else None for t in tasks]
        if None in names or len(set(names)) < len(names):
            raise UserError(
                f"Suite '{self.name}': {self.tasks} must give a list of Task with different names for cell "
                f"'{cell.name}'; it gave {one_line(names, 300)}."
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
        """The episodes asked for, cell by cell, task by task. Without `cells`: the headline cells.

        tasks: names, or indices in the cell ("3"); a name may be shortened to any part that only fits some tasks.
        What is named twice, also in two ways, is one. Raises UserError for anything unknown, for numbers that cannot
        be meant, and where more initial states are asked for than there are.
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
                        f"{count} episodes asked, but task '{task.name}' of cell '{cell.name}' has "
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
        """The one episode of this key, under the cell's own instruction. Raises UserError where this suite lacks it."""
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
    """ "module:Class" of an environment that a suite names."""
    if ":" in name:
        return name
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    if name in (others := find_plugins("apt_bench.envs")):
        return others[name].target
    raise UserError(
        f"{where}: no environment '{one_line(name, 100)}'. {did_you_mean(name, [*ENVIRONMENTS, *others])} "
        "Your own: env: my_module:MyEnv."
    )
