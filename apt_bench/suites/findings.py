"""What `apt-bench validate` finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from apt_bench.core import provenance
from apt_bench.suites import Suite

Level = Literal["ok", "warn", "error"]


@dataclass(frozen=True)
class Finding:
    """One check's result. `error`: scores would not mean what they say; `warn`: a known defect or an oddity."""

    level: Level
    kind: str
    message: str
    cell: str = ""  # "" = the whole suite
    task: str | None = None
    init: int | None = None


def simulator(suite: Suite) -> Iterator[Finding]:
    """Is the simulator that is imported here the one that the suite is defined on?"""
    for package in provenance.simulator(suite.simulator):
        found = provenance.problems(suite.simulator, [package])
        for problem in found:
            yield Finding("error", "version", problem)
        if not found:
            files = sum(tree.files for tree in package.trees)
            yield Finding(
                "ok", "version", f"{package.name} {package.version}, {files} files with their hashes"
            )
