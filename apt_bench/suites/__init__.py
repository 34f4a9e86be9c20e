"""Suites: which episodes there are, in which scene and with which instruction."""

from apt_bench.suites.registry import iter_suites, load_suite, register_suite, registered_suite, suite_names
from apt_bench.suites.suite import STALE, Cell, EpisodeKey, EpisodeSpec, Suite, Task

__all__ = [
    "STALE",
    "Cell",
    "EpisodeKey",
    "EpisodeSpec",
    "Suite",
    "Task",
    "iter_suites",
    "load_suite",
    "register_suite",
    "registered_suite",
    "suite_names",
]
