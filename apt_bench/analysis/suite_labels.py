"""Titles, labels, task numbers and order of what runs name, from the suites that are known by name."""

from __future__ import annotations

from functools import cache

from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line
from apt_bench.suites import STALE, Suite, Task, load_suite, registered_suite

CELL_LENGTH = 60
"""Longest label that is made from a cell's name, in characters."""

UPPER_CASE = 7
"""A cell's name of at most this many characters becomes a label in capitals: `uoue` -> UOUE."""


def find_suite(name: str) -> Suite | None:
    """The suite of this name: shipped, registered in this process, or added by an installed package.

    The name comes from a run directory, which anyone may have written. So it never opens a file: a name that is a
    path finds nothing.

    Returns:
        The suite, or None where there is none of this name or its package cannot be loaded.
    """
    return registered_suite(name) or _installed_suite(name)


@cache
def _installed_suite(name: str) -> Suite | None:
    if name.endswith((".yaml", ".yml")):  # `load_suite` would open it
        return None
    try:
        return load_suite(name)
    except UserError:
        return None


def suite_title(name: str) -> str:
    """The suite's title, or its name where the suite is unknown."""
    suite = find_suite(name)
    return suite.title if suite else name


def cell_label(suite: str, cell: str) -> str:
    """The cell's label in its suite; where the suite or the cell is unknown, a label made from the cell's name."""
    known = find_suite(suite)
    try:
        if known:
            return known.cell(cell).label
    except UserError:
        pass
    cell = one_line(cell, CELL_LENGTH)
    return cell.upper() if len(cell) <= UPPER_CASE else cell.replace("_", " ").capitalize()


def task_numbers(suite: str, cell: str) -> dict[str, int]:
    """Task -> its number in the cell, as `apt-bench ls tasks` counts; {} where the tasks cannot be listed here."""
    return {t.name: i for i, t in enumerate(_tasks(suite, cell))}


def task_containers(suite: str, cell: str) -> dict[str, str]:
    """Task -> the container that its instructions name (`Task.container`), for the tasks that have one."""
    return {t.name: t.container for t in _tasks(suite, cell) if t.container}


def _tasks(suite: str, cell: str) -> list[Task]:
    """The tasks of a cell; none where they cannot be listed here."""
    known, cell = find_suite(suite), cell.removesuffix(STALE)
    try:
        return known.cell_tasks(known.cell(cell)) if known else []
    except Exception:  # a cell of another version, no LIBERO here, or whatever a package's function raises
        return []


def suite_order(key: tuple[str, str]) -> tuple[str, int, str]:
    """Sort key of (suite, cell): the order of the suite's file; a stale control follows its cell."""
    suite = find_suite(key[0])
    names = [c.name for c in suite.cells] if suite else []
    base = key[1].removesuffix(STALE)
    return key[0], names.index(base) if base in names else len(names), key[1]
