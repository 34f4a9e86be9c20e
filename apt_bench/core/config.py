"""YAML and JSON into frozen dataclasses, and objects by name: what suites, policies and training settings share."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from apt_bench.core.errors import UserError, describe_error, did_you_mean
from apt_bench.core.files import read_text
from apt_bench.core.jsonable import INTEGERS
from apt_bench.core.module_search_path import hidden
from apt_bench.core.text import plain

YAML_LIMIT, YAML_VALUES = 2**20, 100_000
"""Bytes of a YAML file, and values in it with aliases written out, at most."""


@dataclass(frozen=True)
class Range:
    """What a number may be, both ends included; `above` and `below` exclude theirs."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def check(self, value: float, where: str) -> None:
        """Raises UserError for a number that lies outside."""
        if (
            (self.least is not None and value < self.least)
            or (self.most is not None and value > self.most)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        ):
            raise UserError(f"{where} is {value}; it must be {self}.")

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {limit:,}" for word, limit in words.items() if limit is not None)


@dataclass(frozen=True)
class OneName:
    """What names a file or a folder as a whole: no slash, no leading dot, nothing that cannot be shown."""

    most: int = 180  # bytes: what is added to it must fit, too

    def check(self, value: str, where: str) -> None:
        """Raises UserError for any other text."""
        if (
            not value
            or value != value.strip()
            or value.startswith(".")
            or any(c in "/\\" for c in value)
            or plain(value, keep="") != value
            or len(value.encode()) > self.most
        ):
            raise UserError(
                f"{where} is {_shown(value)}; a name has 1 to {self.most} bytes, no slash, no control character, "
                "and no dot or space at its start."
            )


Name = Annotated[str, OneName()]


@dataclass(frozen=True)
class OfJson:
    """What JSON can hold: no dates, no NaN."""

    def check(self, value: Any, where: str) -> None:
        """Raises UserError for anything else."""
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{where} must hold what JSON can: {error}.") from None


Arguments = Annotated[Mapping[str, Any], OfJson()]

Count = Annotated[int, Range(least=1, most=10**9)]
"""A number of things: at least one."""

Natural = Annotated[int, Range(least=0, most=2**63 - 1)]
"""A number from zero, seeds included."""

Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(least=0, below=1)]
"""A part of a whole that leaves something."""


class _TooMuch(ValueError):
    """More than `YAML_VALUES`."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is repeated in one mapping, of which YAML would silently keep the last; and stops at the first
    value that is too much."""

    _nodes = 2 * YAML_VALUES  # keys are nodes, too
    _entries = YAML_VALUES  # of mappings, those that `<<` takes from another one included

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._nodes -= 1
        if self._nodes < 0:
            raise _TooMuch
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        self._entries -= len(node.value)
        if self._entries < 0:
            raise _TooMuch

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in names:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"'{key.value}' is defined twice", key.start_mark
                    )
                names.add(key.value)
        return super().construct_mapping(node, deep)


def _bounded(kind: str) -> Callable[[Any, Any], Any]:
    make: Callable[[Any, Any], Any] = _Loader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]

    def number(loader: Any, node: Any) -> Any:
        if len(node.value) > 1000:  # 59:59:59... takes minutes
            raise ValueError(f"a number of {len(node.value):,} characters")
        return make(loader, node)

    return number


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _bounded(_kind))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises UserError, beginning with `where`, for anything else, and for text that aliases
    blow up."""
    too_much = UserError(f"{where} has more than {YAML_VALUES:,} values, or more than 50 levels.")
    try:
        value = yaml.load(text, _Loader)
    except _TooMuch:
        raise too_much from None
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {_yaml_problem(error)}.") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply.") from None
    except (ValueError, OverflowError) as error:  # an impossible date, a number of 5,000 digits
        raise UserError(f"{where} is not YAML: {error}.") from None
    left = YAML_VALUES
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        left -= 1
        if left < 0 or depth > 50:
            raise too_much
        if isinstance(item, dict):
            stack += [(v, depth + 1) for v in item.values()]
        elif isinstance(item, (list, tuple, set)):
            stack += [(v, depth + 1) for v in item]
    return value


def _yaml_problem(error: yaml.YAMLError) -> str:
    """In one line: what is wrong, and where."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file. Raises UserError where there is none."""
    raw = parse_yaml(read_text(path, YAML_LIMIT), str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping, found {type(raw).__name__}.")
    return raw


def build(kind: Any, raw: Any, where: str) -> Any:
    """A value of type `kind` from YAML's plain ones; an unknown, missing or mistyped key is a UserError that names its
    place, which begins with `where`. Values that are of the type already stay. Numbers are finite, and lie in the
    `Range` of an `Annotated` type."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return raw if isinstance(raw, kind) else _build_dataclass(kind, raw, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        value = build(args[0], raw, where)
        for rule in args[1:]:
            if isinstance(rule, (Range, OneName, OfJson)) and value is not None:
                rule.check(value, where)
        return value
    if origin is Literal:
        if not any(raw == a and type(raw) is type(a) for a in args):
            raise UserError(f"{where} is {raw!r}; it must be one of {', '.join(map(str, args))}.")
        return raw
    if origin is tuple:
        several = raw if isinstance(raw, (list, tuple)) else [raw]
        if args[-1] is Ellipsis:
            args = args[:1] * len(several)
        if len(several) != len(args):
            raise UserError(f"{where} is {_shown(raw)}; it must have {len(args)} values.")
        return tuple(build(one, value, where) for one, value in zip(args, several, strict=True))
    if origin in (typing.Union, types.UnionType):  # of one type and None
        (one,) = (a for a in args if a is not types.NoneType)
        return None if raw is None else build(one, raw, where)
    if kind in (float, int):
        return _number(kind, raw, where)
    if kind is Any:
        return raw
    if origin in (Mapping, dict) and isinstance(raw, Mapping):
        return {
            build(args[0], key, f"{where}: the key {_shown(key)}"): build(args[1], value, f"{where}: {key}")
            for key, value in raw.items()
        }
    if origin in (Mapping, dict):
        kind = Mapping
    if isinstance(kind, type) and not isinstance(raw, kind):
        raise UserError(f"{where} is {_shown(raw)}; it must be of type {kind.__name__}.")
    return raw


def _number(kind: type, raw: Any, where: str) -> Any:
    word = "a whole number" if kind is int else "a number"
    value = raw
    if kind is float and isinstance(raw, (int, str)) and not isinstance(raw, bool):
        try:
            value = float(raw)  # YAML reads 1e-4 as text
        except (ValueError, OverflowError):
            raise UserError(f"{where} is {_shown(raw)}; it must be a number.") from None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where} is {_shown(raw)}; it must be {word}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {_shown(raw)}; it must be finite.")
    if isinstance(value, int) and abs(value) >= INTEGERS:
        raise UserError(f"{where} is {_shown(raw)}, which is too large.")
    return value


def _shown(raw: Any) -> str:
    try:
        text = repr(raw)
    except (RecursionError, ValueError):  # a number of 5,000 digits
        text = f"a {type(raw).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _build_dataclass(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: expected a mapping, found {type(raw).__name__}.")
    hints = typing.get_type_hints(kind, include_extras=True)
    check_keys([(kind, raw, where)])
    return kind(**{k: build(hints[k], v, f"{where}: {k}") for k, v in raw.items()})


def check_keys(parts: Sequence[tuple[type, Mapping[Any, Any], str]]) -> None:
    """The keys of the mappings that describe dataclasses, each as (dataclass, mapping, its place).

    Raises:
        UserError: The first unknown key, or else every missing key of all mappings at once.
    """
    missing = []
    for kind, raw, where in parts:
        fields = {f.name: f for f in dataclasses.fields(kind)}
        for key in raw:
            if key not in fields:
                raise UserError(f"{where}: unknown key '{key}'. {did_you_mean(str(key), fields)}")
        names = [
            f"'{name}'"
            for name, f in fields.items()
            if name not in raw
            and f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        ]
        if names:
            words = f"key {names[0]} is" if len(names) == 1 else f"keys {', '.join(names)} are"
            missing.append(f"{where}: {words} missing.")
    if missing:
        raise UserError(" ".join(missing))


def check_fields(value: Any, where: str) -> None:
    """What `build` checks of a configuration, for one that was made in Python: its `__post_init__` calls this."""
    hints = typing.get_type_hints(type(value), include_extras=True)
    for field in dataclasses.fields(value):
        build(hints[field.name], getattr(value, field.name), f"{where}: {field.name}")


def load_object(path: str) -> Any:
    """The object named "module:attribute". Raises UserError where there is none, or where importing the module fails,
    whatever it raises or calls: argparse and `sys.exit` in a person's module included."""
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise UserError(f"'{path}' is not of the form module:name.")
    where = f"Cannot import '{module}' (from '{path}')"
    try:
        with as_program(module):
            found = import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{where}: {error}.{_hidden(module)}") from None
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        raise UserError(
            f"{where}: it ended itself with exit code {error.code}. Keep what it does as a program, such as reading "
            "arguments, below `if __name__ == '__main__':`."
        ) from error
    except BaseException as error:
        raise UserError(f"{where}: it raised {describe_error(error)}.") from error
    try:
        return getattr(found, attribute)
    except AttributeError:
        raise UserError(f"Module '{module}' has no '{attribute}'.{_hidden(module)}") from None


def _hidden(module: str) -> str:
    path = hidden(module)
    return (
        f" {path} is not what was imported: a module of that name is installed. Rename yours." if path else ""
    )


@contextmanager
def as_program(module: str) -> Iterator[None]:
    """Call a person's code as if its module were the program: what argparse says there bears the module's name, and the
    words of apt-bench's own command line are not its arguments."""
    before, sys.argv = sys.argv, [module]
    try:
        yield
    finally:
        sys.argv = before


def checked(kind: Any, name: str) -> Callable[[Any], Any]:
    """A callback for an option of the command line: the value as `build` would take it; None stays."""
    return lambda value: None if value is None else build(kind, value, name)
