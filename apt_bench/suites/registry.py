"""Find suites by name or by path.

A name is that of a shipped suite, of one registered in this process, or of one that an installed package adds. A path
is that of a YAML file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from apt_bench.core.config import build, check_keys, load_object, read_yaml
from apt_bench.core.errors import UserError, describe_error, did_you_mean
from apt_bench.core.paths import data_dir
from apt_bench.core.plugins import Plugin, find_plugins
from apt_bench.core.text import one_line, say
from apt_bench.suites.suite import Cell, Suite


def suite_names() -> list[str]:
    """Return the names of the shipped suites."""
    return sorted(p.stem for p in data_dir("suites").glob("*.yaml"))


_registered: dict[str, Suite] = {}


def register_suite(suite: str | os.PathLike[str] | Suite) -> Suite:
    """Register a suite under its name in this process. A later suite with the same name replaces it.

    Args:
        suite: A `Suite`, or the path of its YAML file.

    Returns:
        The registered suite.

    Raises:
        UserError: The file does not define a suite, or a shipped suite has the same name.
    """
    found = suite if isinstance(suite, Suite) else _read_suite(_path(os.fspath(suite)))
    if found.name in suite_names():
        raise UserError(f"A shipped suite is called '{found.name}'. Give yours another name.")
    _registered[found.name] = found
    return found


def registered_suite(name: str) -> Suite | None:
    """The suite that `register_suite` registered under this name in this process, or None."""
    return _registered.get(name)


def load_suite(name: str) -> Suite:
    """Return a suite by name or by path.

    Args:
        name: The path of a YAML file (with the suffix .yaml or .yml), or the name of a suite. Shipped suites are
            searched first, then those of `register_suite`, then those that installed packages add.

    Raises:
        UserError: There is no such suite, or its file is invalid.
    """
    if name.endswith((".yaml", ".yml")):
        return _read_suite(_path(name))
    if name in suite_names():
        return _read_suite(data_dir("suites") / f"{name}.yaml")
    if name in _registered:
        return _registered[name]
    if name in (others := find_plugins("apt_bench.suites")):
        return _from_package(name, others[name])
    raise UserError(f"No suite '{name}'. {did_you_mean(name, {*suite_names(), *_registered, *others})}")


def _path(name: str) -> Path:
    if not os.path.isfile(name):  # False also for what is too long to be a path
        raise UserError(
            f"No file '{name}'. Give --suite the path of a YAML file, or a name from `apt-bench ls suites`."
        )
    return Path(name)


def _read_suite(path: Path) -> Suite:
    raw = read_yaml(path)
    cells = raw.get("cells", {"": {}})
    if not isinstance(cells, dict) or not cells:
        raise UserError(f"{path}: 'cells' must map at least one name to a cell.")
    parts: list[tuple[type, Mapping[Any, Any], str]] = [(Suite, raw, str(path))]
    for cell, content in cells.items() if "cells" in raw else ():
        if not isinstance(content, dict):
            raise UserError(f"{path}: cell '{cell}': expected a mapping, found {type(content).__name__}.")
        if "name" in content:
            raise UserError(
                f"{path}: cell '{cell}': its name is the key before the colon; remove the key 'name'."
            )
        parts.append((Cell, {"name": cell, **content}, f"{path}: cell '{cell}'"))
    check_keys(parts)
    raw["cells"] = tuple(build(kind, content, where) for kind, content, where in parts[1:])
    suite: Suite = build(Suite, raw, str(path))
    return suite


def _from_package(name: str, entry: Plugin) -> Suite:
    """Load the suite of an entry point: a Suite, the path of a YAML file, or a function without arguments that returns
    either. Raises UserError for anything else, and for any exception of the package."""
    where = f"Suite '{name}' of package {entry.package}"
    try:
        found = load_object(entry.target)
        if callable(found):
            found = found()
        suite = found if isinstance(found, Suite) else _read_suite(_path(os.fspath(found)))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{where} cannot be loaded: {one_line(describe_error(error), 300)}.") from error
    if suite.name != name:
        raise UserError(f"{where} has the name '{suite.name}'. Give its entry point the same name.")
    return suite


def iter_suites() -> Iterator[Suite]:
    """Yield every suite that has a name: the shipped ones, those registered in this process, those of packages.

    A suite of a package that cannot be loaded is skipped, with a line on stderr."""
    shipped = suite_names()
    for name in shipped:
        yield load_suite(name)
    yield from _registered.values()
    for name, entry in find_plugins("apt_bench.suites").items():
        if name in shipped or name in _registered:
            continue
        try:
            yield _from_package(name, entry)
        except UserError as error:
            say(error)
