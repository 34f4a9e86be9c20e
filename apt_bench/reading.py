"""YAML files into frozen dataclasses, and objects by name: what suites, policies and training configurations share."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import yaml

from apt_bench.errors import UserError, did_you_mean


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file. Raises UserError where there is none."""
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping, found {type(raw).__name__}.")
    return raw


def build(kind: Any, raw: Any, where: str) -> Any:
    """A value of type `kind` from YAML's plain ones; an unknown, missing or mistyped key is a UserError that names its
    place, which begins with `where`. Values that are of the type already stay."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return raw if isinstance(raw, kind) else _build_dataclass(kind, raw, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if raw not in args:
            raise UserError(f"{where} is {raw!r}; it must be one of {', '.join(map(str, args))}.")
        return raw
    if origin is tuple:
        several = raw if isinstance(raw, (list, tuple)) else [raw]
        return tuple(build(args[0], value, where) for value in several)
    if origin in (typing.Union, types.UnionType):  # of one type and None
        (one,) = (a for a in args if a is not types.NoneType)
        return None if raw is None else build(one, raw, where)
    if kind is float and isinstance(raw, (int, str)) and not isinstance(raw, bool):
        try:
            return float(raw)  # YAML reads 1e-4 as text
        except ValueError:
            raise UserError(f"{where} is {raw!r}; it must be a number.") from None
    if origin in (Mapping, dict) or kind is Mapping:
        kind = Mapping
    if isinstance(kind, type) and (not isinstance(raw, kind) or (kind is int and isinstance(raw, bool))):
        raise UserError(f"{where} is {raw!r}; it must be of type {kind.__name__}.")
    return raw


def _build_dataclass(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: expected a mapping, found {type(raw).__name__}.")
    hints, fields = typing.get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in fields:
            raise UserError(f"{where}: unknown key '{key}'. {did_you_mean(str(key), fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in raw:
            raise UserError(f"{where}: key '{name}' is missing.")
    return kind(**{k: build(hints[k], v, f"{where}: {k}") for k, v in raw.items()})


def load_object(path: str) -> Any:
    """The object named "module:attribute"."""
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise UserError(f"'{path}' is not of the form module:name.")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UserError(f"Cannot import '{module}' (from '{path}'): {error}.") from None
    except AttributeError:
        raise UserError(f"Module '{module}' has no '{attribute}'.") from None
