"""Options that several verbs share. Names, types and help texts come from `apt_bench.rollout.options`."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from apt_bench.cli._completion import COMPLETE
from apt_bench.rollout.options import GROUPS, OPTIONS, Option, options_of, words

__all__ = ["GroupedCommand", "read_words", "takes_options", "words"]

TITLES = dict(
    zip(GROUPS.values(), ("Selection of episodes", "Execution", "Output", "Stopping rule"), strict=True)
)
"""Headings of the help."""


def _help(field: str) -> Any:
    option = OPTIONS[field]
    return typer.Option(
        f"--{option.name}",
        help=option.help.text,
        metavar=option.help.metavar or None,
        autocompletion=COMPLETE.get(field),
    )


SuiteName = Annotated[str, _help("suite")]
PolicyName = Annotated[str, _help("policy")]
CellList = Annotated[str | None, _help("cells")]
TaskList = Annotated[str | None, _help("tasks")]
Instruction = Annotated[str | None, _help("instruction")]
Instructions = Annotated[Path | None, _help("instructions")]
TrackName = Annotated[str, _help("track")]
RayAddress = Annotated[str | None, _help("ray_address")]
Unpinned = Annotated[bool, _help("unpinned")]
PolicyArgs = Annotated[list[str] | None, _help("policy_args")]
Servers = Annotated[list[str] | None, _help("servers")]
Checkpoint = Annotated[str | None, _help("checkpoint")]
LlmModel = Annotated[str | None, _help("llm_model")]
MaxCost = Annotated[float | None, _help("max_cost")]
Cassette = Annotated[tuple[str, str] | None, _help("cassette")]


class GroupedCommand(TyperCommand):
    """A command whose help lists its options under headings, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """See Click."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if row := param.get_help_record(ctx):
                groups.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(row)
        groups["Options"] = groups.pop("Options", [])  # the verb's own come last
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def takes_options(
    fields: Iterable[str] = tuple(OPTIONS), changed: Mapping[str, Mapping[str, Any]] = {}
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb these options of a run.

    The decorated function gets those that the command line names as `given`: their raw values under their fields'
    names. No option is required, because a configuration file may set it.

    Args:
        fields: Names of the options' fields.
        changed: By field, what is different for this verb: `names` (all of its names), `default` (shown only), `text`,
            `repeated` (the command line may repeat it).
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(function, include_extras=True)
        own = [p for p in inspect.signature(function).parameters.values() if p.name != "given"]
        options = [
            inspect.Parameter(
                field,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=_annotation(OPTIONS[field], **changed.get(field, {})),
            )
            for field in fields
        ]
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in own]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            given = {p.name: v for p in options if (v := values.pop(p.name)) not in (None, [])}
            function(given=given, **values)

        command.__signature__ = inspect.Signature([*options, *own])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in [*options, *own]}
        del command.__wrapped__  # typer would read its signature
        return command

    return decorate


def read_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the command line as the fields of the options take them. Raises UserError."""
    return {field: OPTIONS[field].read(raw, OPTIONS[field].flag) for field, raw in given.items()}


def _annotation(
    option: Option,
    names: tuple[str, ...] = (),
    default: Any = MISSING,
    text: str = "",
    repeated: bool = False,
) -> Any:
    """The parameter that typer makes an option of."""
    shown = option.default if default is MISSING else default
    text = text or option.help.text
    if shown not in (MISSING, None, (), False):
        text += f"  [default: {shown:g}]" if isinstance(shown, float) else f"  [default: {shown}]"
    kind: Any = option.base if option.base in (int, float, bool) else str
    title = next(t for group, t in TITLES.items() if option in options_of(group))
    if option.help.positional:
        return Annotated[kind | None, typer.Argument(help=text, metavar="FILE", rich_help_panel=title)]
    metavar: str | None = None
    if kind is bool:
        names = (f"--{option.name}/--no-{option.name}",)
    elif repeated or option.help.repeated or option.help.pair:
        kind, metavar = tuple[str, str] if option.help.pair else list[str], option.help.metavar or None
    elif option.base in (tuple, Path):
        metavar = "<path>" if option.base is Path else "<a,b,...>"
    else:
        metavar = option.help.metavar or None
    complete = COMPLETE.get(option.field)
    info = typer.Option(
        *(names or (f"--{option.name}",)),
        help=text,
        metavar=metavar,
        rich_help_panel=title,
        autocompletion=complete,
    )
    return Annotated[kind | None, info]
