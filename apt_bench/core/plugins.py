"""Find policies, suites and environments that other installed packages add by entry points.

    [project.entry-points."apt_bench.policies"]
    my_policy = "my_package.policies:MyPolicy"

Names are read from the packages' metadata. A package is imported only when one of its names is used, or when suites
are listed. See docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Literal

from apt_bench.core.errors import describe_error
from apt_bench.core.text import one_line, say

Group = Literal["apt_bench.policies", "apt_bench.suites", "apt_bench.envs"]


@dataclass(frozen=True)
class Plugin:
    """One entry point of another package."""

    target: str  # "module:attribute"
    package: str  # the distribution that declares it


def find_plugins(group: Group) -> dict[str, Plugin]:
    """Find the entry points of a group, without importing them.

    Damaged metadata of a package, and a name that two packages add, are reported on stderr. If two packages add the
    same name, the package whose name sorts first is used.

    Args:
        group: The entry-point group.

    Returns:
        The plugins by name, sorted.
    """
    found: dict[str, Plugin] = {}
    for point in sorted(_points(group), key=lambda p: (p.name, _package(p))):
        one = Plugin(point.value.partition("[")[0].strip(), _package(point))
        known = found.setdefault(point.name, one)
        if known != one:
            name = one_line(point.name, 100)
            say(f"{group}: '{name}' is added by {known.package} and by {one.package}; the first counts.")
    return found


def _points(group: str) -> Iterable[EntryPoint]:
    try:
        return entry_points(group=group)
    except Exception:  # the metadata of some package cannot be read
        found: list[EntryPoint] = []
        for package in distributions():
            try:
                found += package.entry_points.select(group=group)
            except Exception as error:
                say(
                    f"the entry points of {_name(package)} cannot be read: {one_line(describe_error(error), 200)}."
                )
        return found


def _package(point: EntryPoint) -> str:
    return _name(getattr(point, "dist", None))


def _name(package: object) -> str:
    try:
        return one_line(package.metadata["Name"], 100)  # type: ignore[attr-defined]
    except Exception:
        return "an unnamed package"
