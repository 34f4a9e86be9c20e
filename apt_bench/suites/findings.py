"""Findings of `apt-bench validate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from apt_bench.core import provenance
from apt_bench.suites import Suite

Level = Literal["ok", "warn", "error"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        level: `ok`; `warn`: a known defect or something unusual; `error`: scores would be wrong.
        kind: A short name of what was checked.
        message: A sentence for people.
        cell: Name of the cell, "" for the whole suite.
        task: Name of the task, if the finding is about one.
        init: Index of the initial state, if the finding is about one.
    """

    level: Level
    kind: str
    message: str
    cell: str = ""
    task: str | None = None
    init: int | None = None


def simulator(suite: Suite) -> Iterator[Finding]:
    """Check whether the imported simulator is the one that the suite is defined for."""
    for package in provenance.simulator(suite.simulator):
        found = provenance.problems(suite.simulator, [package])
        for problem in found:
            yield Finding("error", "version", problem)
        if not found:
            files = sum(tree.files for tree in package.trees)
            yield Finding(
                "ok", "version", f"{package.name} {package.version}, {files} files with their hashes"
            )
