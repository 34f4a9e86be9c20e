"""Turn YAML and JSON into frozen dataclasses, and load objects by name. Suites, policies and recipes use it."""

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
from typing import Annotated, Any, Literal, TypeVar, overload

import yaml

from apt_bench.core.errors import UserError, describe_error, did_you_mean
from apt_bench.core.files import read_text
from apt_bench.core.jsonable import INTEGERS
from apt_bench.core.module_search_path import shadowed_file
from apt_bench.core.text import plain

YAML_LIMIT, YAML_VALUES = 2**20, 100_000
"""Maximum size of a YAML file in bytes, and maximum number of values in it after aliases are expanded."""

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The range of a number. `least` and `most` are included; `above` and `below` are excluded."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def check(self, value: float, where: str) -> None:
        """Raise UserError if the number is out of range; `where` names it."""
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
    """A text that can name one file or folder: no slash, no leading dot, only printable characters."""

    most: int = 180  # bytes; suffixes still fit

    def check(self, value: str, where: str) -> None:
        """Raise UserError for any other text; `where` names it."""
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
class JsonValue:
    """A value that JSON can hold: no dates, no NaN."""

    def check(self, value: Any, where: str) -> None:
        """Raise UserError for any other value; `where` names it."""
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{where} must be a value that JSON can hold: {error}.") from None


Arguments = Annotated[Mapping[str, Any], JsonValue()]

Count = Annotated[int, Range(least=1, most=10**9)]
"""A count: at least 1."""

Natural = Annotated[int, Range(least=0, most=2**63 - 1)]
"""A whole number from 0, such as a seed."""

Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(least=0, below=1)]
"""A fraction in [0, 1)."""


class _TooManyValues(ValueError):
    """The text has more than `YAML_VALUES` values."""


class _Loader(yaml.SafeLoader):
    """Refuse a key that is repeated in one mapping (YAML would keep the last one), and stop after `YAML_VALUES` values.

    PyYAML reads about 25,000 values a second, so the limit is checked while it reads."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values_left = YAML_VALUES
        self._entries_left = YAML_VALUES  # of mappings, including those that `<<` merges from another one

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_key = index is None and isinstance(parent, yaml.MappingNode)
        self._values_left -= not is_key
        if self._values_left < 0:
            raise _TooManyValues
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        self._entries_left -= len(node.value)
        if self._entries_left < 0:
            raise _TooManyValues

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


def _of_bounded_length(kind: str) -> Callable[[Any, Any], Any]:
    make: Callable[[Any, Any], Any] = _Loader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]

    def number(loader: Any, node: Any) -> Any:
        if len(node.value) > 1000:  # a sexagesimal number 59:59:59... takes minutes
            raise ValueError(f"a number of {len(node.value):,} characters")
        return make(loader, node)

    return number


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _of_bounded_length(_kind))


def parse_yaml(text: str, where: str) -> Any:
    """Parse a YAML text.

    Args:
        text: The YAML text.
        where: Names the source; every error message begins with it.

    Returns:
        The value, made of dict, list, str, int, float, bool, None and dates.

    Raises:
        UserError: The text is not YAML, has more than `YAML_VALUES` values after aliases are expanded, or more than 50
            levels.
    """
    too_many = UserError(f"{where} has more than {YAML_VALUES:,} values, or more than 50 levels.")
    try:
        value = yaml.load(text, _Loader)
    except _TooManyValues:
        raise too_many from None
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
            raise too_many
        if isinstance(item, dict):
            stack += [(v, depth + 1) for v in item.values()]
        elif isinstance(item, (list, tuple, set)):
            stack += [(v, depth + 1) for v in item]
    return value


def _yaml_problem(error: yaml.YAMLError) -> str:
    """One line that names what is wrong and where."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose content is a mapping.

    Raises:
        UserError: The file cannot be read, is not YAML (see `parse_yaml`), or holds something else.
    """
    raw = parse_yaml(read_text(path, YAML_LIMIT), str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping, found {type(raw).__name__}.")
    return raw


@overload
def build(kind: type[T], raw: Any, where: str) -> T: ...
@overload
def build(kind: Any, raw: Any, where: str) -> Any: ...
def build(kind: Any, raw: Any, where: str) -> Any:
    """Build a value of type `kind` from the plain values of YAML, JSON or the command line.

    Args:
        kind: A dataclass, `int`, `float`, `str`, `bool`, `Any`, `Literal[...]`, `tuple[...]`, `Mapping[...]`,
            `X | None`, or `Annotated[X, rule]` with the rules `Range`, `OneName` and `JsonValue`.
        raw: The plain value. A value that already has the type is returned as it is.
        where: Names the place of the value; every error message begins with it.

    Returns:
        The value. Numbers are finite.

    Raises:
        UserError: A key is unknown or missing, or a value has the wrong type or breaks a rule.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return raw if isinstance(raw, kind) else _build_dataclass(kind, raw, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        value = build(args[0], raw, where)
        for rule in args[1:]:
            if isinstance(rule, (Range, OneName, JsonValue)) and value is not None:
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
    if origin in (typing.Union, types.UnionType):  # one type or None
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
    """Check the keys of mappings that describe dataclasses.

    Args:
        parts: (dataclass, mapping, place of the mapping for messages), one for each mapping.

    Raises:
        UserError: Names the first unknown key, or otherwise all missing keys of all mappings.
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
    """Check a dataclass that was made in Python as `build` checks one from a file. Call it from `__post_init__`.

    Raises:
        UserError: A field has the wrong type or breaks a rule of its annotation.
    """
    hints = typing.get_type_hints(type(value), include_extras=True)
    for field in dataclasses.fields(value):
        build(hints[field.name], getattr(value, field.name), f"{where}: {field.name}")


def load_object(path: str) -> Any:
    """Import the object named "module:attribute".

    Raises:
        UserError: There is no such object, or importing the module fails for any reason, including `sys.exit` and
            argparse errors.
    """
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise UserError(f"'{path}' is not of the form module:name.")
    where = f"Cannot import '{module}' (from '{path}')"
    try:
        with argv_of_module(module):
            found = import_module(module)
    except ModuleNotFoundError as error:
        place = " Start apt-bench in the folder that holds it." if error.name == module else ""
        raise UserError(f"{where}: {error}.{_shadowed_hint(module) or place}") from None
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        raise UserError(
            f"{where}: it exited with exit code {error.code}. Put code that runs as a program, such as reading "
            "arguments, below `if __name__ == '__main__':`."
        ) from error
    except BaseException as error:
        raise UserError(f"{where}: it raised {describe_error(error)}.") from error
    try:
        return getattr(found, attribute)
    except AttributeError:
        raise UserError(f"Module '{module}' has no '{attribute}'.{_shadowed_hint(module)}") from None


def _shadowed_hint(module: str) -> str:
    path = shadowed_file(module)
    return f" {path} was not imported: an installed module has the same name. Rename yours." if path else ""


@contextmanager
def argv_of_module(module: str) -> Iterator[None]:
    """Set `sys.argv` to the module's name while user code runs. It does not see apt-bench's own arguments, and argparse
    errors name the module."""
    before, sys.argv = sys.argv, [module]
    try:
        yield
    finally:
        sys.argv = before


def checked(kind: Any, name: str) -> Callable[[Any], Any]:
    """Make a callback for a command-line option that checks its value with `build`; None stays None."""
    return lambda value: None if value is None else build(kind, value, name)
