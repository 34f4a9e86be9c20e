"""The options of a run, each defined once: its name, type, range, default and help text.

The fields of the dataclasses below are the definition. `apt-bench run` and `apt-bench collect` make their command lines
from it, `apt-bench run --config FILE` reads its keys by it, and the Python API checks its arguments against it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from apt_bench.core.config import Arguments, Count, Natural, Positive, Range, build, read_yaml
from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.suites.custom_instructions import CustomInstructions, custom_instructions

Words = tuple[str, ...]
Attempts = Annotated[int, Range(least=1, most=1000)]
Seconds = Annotated[float, Range(above=0, most=10**7)]
Points = Annotated[float, Range(above=0, below=100)]
Fraction = Annotated[float, Range(above=0, below=1)]


@dataclass(frozen=True)
class Help:
    """How a field appears as an option.

    Args:
        text: What the option does.
        name: Its name without the leading dashes; empty = the field's name.
        repeated: The command line may repeat it; otherwise several words are separated by commas.
        metavar: What help shows for the value; empty = its type.
        positional: The command line takes it without a name.
        points: The command line and files give it in percentage points, the field is a fraction.
        pair: The command line takes two words.
    """

    text: str
    name: str = ""
    repeated: bool = False
    metavar: str = ""
    positional: bool = False
    points: bool = False
    pair: bool = False


@dataclass(frozen=True)
class Option:
    """One option, as the command line and configuration files need it."""

    field: str
    kind: Any  # as `core.config.build` takes it
    default: Any
    help: Help

    @property
    def name(self) -> str:
        """The name on the command line, without dashes before it."""
        return self.help.name or self.field.replace("_", "-")

    @property
    def flag(self) -> str:
        """The option's name in messages."""
        return "FILE" if self.help.positional else f"--{self.name}"

    @property
    def base(self) -> type:
        """The plain type: str, int, float, bool, Path or tuple."""
        kind = self.kind
        while typing.get_args(kind) and typing.get_origin(kind) not in (tuple, Literal):
            kind = next(a for a in typing.get_args(kind) if a is not type(None))
        origin = typing.get_origin(kind)
        return str if origin is Literal else origin or kind

    def read(self, raw: Any, where: str) -> Any:
        """The field's value from a word of the command line or a value of a YAML file.

        Args:
            raw: A comma list may be one text or a list; `policy-arg` may be a mapping.
            where: Names the value in messages.

        Raises:
            UserError: A wrong type or a number out of range.
        """
        if self.base is tuple:
            return self._read_words(raw, where)
        if self.base is Path and raw is not None:
            return Path(build(str, raw, where))
        if self.field == "workers" and isinstance(raw, int) and not isinstance(raw, bool):
            raw = str(raw)
        if self.help.points:
            value = build(Points | None, raw, where)
            return None if value is None else value / 100
        return build(self.kind, raw, where)

    def _read_words(self, raw: Any, where: str) -> Words:
        if self.field == "policy_args" and isinstance(raw, Mapping):
            return tuple(f"{k}={json.dumps(v)}" for k, v in build(Arguments, raw, where).items())
        several = raw if isinstance(raw, (list, tuple)) else [raw]
        texts = build(Words, [str(x) if type(x) is int else x for x in several], where)
        if self.help.pair and isinstance(raw, str):
            return tuple(raw.split(maxsplit=1))
        if self.help.repeated or isinstance(raw, (list, tuple)):
            return tuple(texts)
        return words(texts[0])


@cache
def options_of(kind: type) -> tuple[Option, ...]:
    """The options that a dataclass of this module defines, in their order."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return tuple(
        Option(
            f.name,
            hints[f.name],
            f.default,
            next(a for a in hints[f.name].__metadata__ if isinstance(a, Help)),
        )
        for f in fields(kind)
    )


class _Checked:
    """Checks the fields of a dataclass of options when it is made."""

    def __post_init__(self) -> None:
        kind: type = type(self)
        for found in options_of(kind):
            value = build(found.kind, getattr(self, found.field), found.flag)
            if found.base is tuple and not (found.help.repeated or found.help.pair):
                value = tuple(dict.fromkeys(value))
            object.__setattr__(self, found.field, value)


@dataclass(frozen=True)
class Selection(_Checked):
    """Which episodes to run. None = the suite's own value. A name that a list repeats counts once."""

    suite: Annotated[str, Help("Name of a shipped suite, or path of a suite's YAML file.")]
    cells: Annotated[Words, Help("Cells, separated by commas. Default: the headline cells.")] = ()
    tasks: Annotated[
        Words, Help("Tasks, separated by commas: part of a name, or an index. Default: all.")
    ] = ()
    episodes: Annotated[Count | None, Help("Initial states per task. Default: the suite's number.")] = None
    seed: Annotated[Natural | None, Help("Seed of the scenes. Default: the suite's.")] = None
    limit: Annotated[Count | None, Help("Run only the first N episodes of the selection.")] = None
    instruction_source: Annotated[
        str | None, Help("Take every instruction from here instead of the cell's source: file or bddl.")
    ] = None
    probes: Annotated[
        Words,
        Help(
            "Language probes, separated by commas. Each runs the same episodes with other instructions; a repeat with "
            "the original instruction is added.",
            name="probe",
        ),
    ] = ()
    instruction: Annotated[
        str | None,
        Help(
            "Your own sentence, sent in every episode as the language probe `custom`.", metavar="<sentence>"
        ),
    ] = None
    instructions: Annotated[
        Path | None,
        Help("CSV file with your own sentences: columns cell or task (or both), init (optional), sentence."),
    ] = None

    @cached_property
    def custom(self) -> CustomInstructions | None:
        """The user's own sentences. Raises UserError where they are invalid."""
        return custom_instructions(self.instruction, self.instructions)


@dataclass(frozen=True)
class Execution(_Checked):
    """Which policy runs the episodes, and how."""

    policy: Annotated[str, Help("Name of a shipped policy, or my_module:MyPolicy.")]
    policy_args: Annotated[
        Words,
        Help(
            "Argument of the policy, as key=value; may be repeated.",
            name="policy-arg",
            repeated=True,
            metavar="<key=value>",
        ),
    ] = ()
    file: Annotated[
        str | None, Help("File that the policy executes: --policy replay FILE.", positional=True)
    ] = None
    checkpoint: Annotated[
        str | None,
        Help("Checkpoint or file of the policy: --policy apt --checkpoint FOLDER.", metavar="<name>"),
    ] = None
    servers: Annotated[
        Words,
        Help(
            "Address of the policy's server; may be repeated, and HOST:8000-8003 means four servers.",
            name="server",
            repeated=True,
            metavar="<address>",
        ),
    ] = ()
    llm_model: Annotated[
        str | None, Help("Language model of a policy that asks one (cap), as its server names it.")
    ] = None
    max_cost: Annotated[
        Positive | None, Help("US dollars that a run may spend on its language model, at most.")
    ] = None
    cassette: Annotated[
        Words,
        Help(
            "record FILE: store the language model's answers. replay FILE: take them from FILE, without a network.",
            metavar="<record|replay> <file>",
            pair=True,
        ),
    ] = ()
    execute_horizon: Annotated[
        Count | None, Help("Actions executed of each chunk. Default: the policy's number.")
    ] = None
    workers: Annotated[str, Help("Rollout processes: auto, a number, or 0 for this process without Ray.")] = (
        "auto"
    )
    ray_address: Annotated[str | None, Help("Join this Ray cluster.")] = None
    attempts: Annotated[Attempts, Help("Attempts at an episode that ends in an error.")] = 3
    hang_timeout: Annotated[Seconds, Help("Kill a worker that gives no heartbeat for this many seconds.")] = (
        180.0
    )
    unpinned: Annotated[
        bool, Help("Run with another simulator than the suite's. The results are marked.")
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        number_of_workers(self.workers)
        if self.file is not None and self.checkpoint is not None:
            raise UserError("FILE and --checkpoint are the same. Give one of them.")
        if self.cassette and (len(self.cassette) != 2 or self.cassette[0] not in ("record", "replay")):
            raise UserError(f"--cassette is record FILE or replay FILE, not '{' '.join(self.cassette)}'.")

    @property
    def llm(self) -> dict[str, Any]:
        """Options of a policy that asks a language model, as `find_policy` takes them."""
        return {"model": self.llm_model, "max_cost": self.max_cost, "cassette": self.cassette}


@dataclass(frozen=True)
class Output(_Checked):
    """What a run writes, and where."""

    out: Annotated[Path | None, Help("Run directory. Default: a folder of results/runs.")] = None
    video: Annotated[str, Help("Episodes to film: none, failures, first:K or all.")] = "none"
    save_actions: Annotated[bool, Help("Store the executed actions, for --policy replay.")] = False
    track: Annotated[str, Help("Send metrics to a tracker: none, wandb or trackio.")] = "none"
    selection_rule: Annotated[
        str | None,
        Help(
            "Which checkpoint this is and how it was chosen, in one sentence for leaderboards.",
            metavar="<sentence>",
        ),
    ] = None


@dataclass(frozen=True)
class StoppingRule(_Checked):
    """When a run ends: when every episode is run, or as soon as a comparison with an earlier run is decided."""

    stop_when: Annotated[
        Literal["complete", "decided"],
        Help("complete, or decided: test between batches whether this run and --against differ."),
    ] = "complete"
    against: Annotated[
        Path | None, Help("With --stop-when decided: run to compare with, episode by episode.")
    ] = None
    margin: Annotated[
        Fraction | None,
        Help("With --stop-when decided: stop also when both runs are equal within N points.", points=True),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.stop_when == "decided") != (self.against is not None) or (
            self.margin is not None and self.against is None
        ):
            raise UserError(
                "--stop-when decided needs --against RUN; --against and --margin need --stop-when decided."
            )


@dataclass(frozen=True)
class RunOptions:
    """All options of `apt-bench run`.

    Raises:
        UserError: A value of the wrong type or outside its range, or options that exclude each other.
    """

    selection: Selection
    execution: Execution
    output: Output = field(default_factory=Output)
    stopping: StoppingRule = field(default_factory=StoppingRule)

    def __post_init__(self) -> None:
        chosen = self.selection
        probed = chosen.probes or chosen.instruction is not None or chosen.instructions is not None
        if self.stopping.against is not None and (probed or chosen.limit is not None):
            raise UserError(
                "--stop-when decided excludes --probe and --limit, and your own sentences. Leave them out."
            )

    @staticmethod
    def of(**values: Any) -> RunOptions:
        """The options from the fields of all groups, given by name.

        Raises:
            UserError: An unknown, missing or wrong value.
        """
        for name in values:
            if name not in OPTIONS:
                raise UserError(f"There is no option '{name}'. {did_you_mean(name, OPTIONS)}")
        for found in OPTIONS.values():
            if found.default is dataclasses.MISSING and found.field not in values:
                raise UserError(
                    f"{found.flag} is missing. `apt-bench ls suites` and `apt-bench ls policies` list the names."
                )
        return RunOptions(
            **{
                group: kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})
                for group, kind in GROUPS.items()
            }
        )

    def replace(self, **changes: Any) -> RunOptions:
        """The same options with other values of these fields."""
        now = {f.name: getattr(getattr(self, g), f.name) for g, kind in GROUPS.items() for f in fields(kind)}
        return RunOptions.of(**now | changes)


GROUPS: dict[str, type] = {
    "selection": Selection,
    "execution": Execution,
    "output": Output,
    "stopping": StoppingRule,
}


OPTIONS: dict[str, Option] = {o.field: o for kind in GROUPS.values() for o in options_of(kind)}
"""Every option under the name of its field."""


def read_config(path: Path) -> dict[str, Any]:
    """The options in a YAML file, under the names of their fields.

    Keys are the long options of `apt-bench run`, with `-` or `_` between words, and `file`.

    Raises:
        UserError: An unknown key, one that is given twice, or a value of a wrong type or out of range.
    """
    known = {o.name: o for o in OPTIONS.values()}
    found: dict[str, Any] = {}
    for key, raw in read_yaml(path).items():
        name = str(key).replace("_", "-")
        if name not in known:
            raise UserError(f"{path}: unknown key '{key}'. {did_you_mean(name, known)}")
        if known[name].field in found:
            raise UserError(f"{path}: '{name}' is defined twice.")
        found[known[name].field] = known[name].read(raw, f"{path}: {key}")
    return found


def words(text: str | None) -> Words:
    """The words of a list that is separated by commas; a repeated word counts once."""
    return tuple(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))


def number_of_workers(text: str) -> int | None:
    """The number in `--workers`, or None for `auto`."""
    if text == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise UserError(f"--workers is auto or a number from 0, not '{text}'.")
    return int(text)
