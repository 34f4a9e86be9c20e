"""Shell completion: the verb of an unfinished command line, and the values that its options take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import typer


def words() -> list[str]:
    """The unfinished command line, split at white space, without the program's name."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return line.split()[1:]


def suites(incomplete: str) -> list[str]:
    """Names of shipped suites and of those that packages add. Paths of files are completed by the shell."""
    from apt_bench.core.plugins import find_plugins
    from apt_bench.suites.registry import suite_names

    return _starting(incomplete, [*suite_names(), *find_plugins("apt_bench.suites")])


def policies(incomplete: str) -> list[str]:
    """Names of policies."""
    from apt_bench.policies.registry import policy_names

    return _starting(incomplete, policy_names())


def cells(context: typer.Context, incomplete: str) -> list[str]:
    """Cells of the suite that the command line names, as a comma list continued after its last comma."""
    from apt_bench.core.errors import UserError
    from apt_bench.suites.registry import load_suite

    suite = context.params.get("suite")
    if not suite:
        return []
    try:
        names = [cell.name for cell in load_suite(suite).cells]
    except UserError:  # running the command reports it
        return []
    before, comma, _ = incomplete.rpartition(",")
    given = before.split(",")
    return _starting(incomplete, [before + comma + name for name in names if name not in given])


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


COMPLETE: dict[str, Callable[..., list[str]]] = {"suite": suites, "policy": policies, "cells": cells}
"""Field of an option -> function that completes its value."""
